"""Where a run's metrics are written. A new logger takes one class and one line in `LOGGERS`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from gini_jax.training.workdir import add_line


class Logger(Protocol):
    """Takes one line per evaluation."""

    def write(self, line: dict[str, Any]) -> None:
        """Writes a line of metrics; `line["step"]` is the step."""

    def close(self) -> None:
        """Writes everything that is still buffered."""


class Jsonl:
    """metrics.jsonl: one line of JSON per evaluation."""

    def __init__(self, workdir: Path, config: Any):
        del config
        self._path = workdir / "metrics.jsonl"

    def write(self, line: dict[str, Any]) -> None:
        """Adds the line."""
        add_line(self._path, line)

    def close(self) -> None:
        """Does nothing: no line is buffered."""


class TensorBoard:
    """Event files for TensorBoard; written without TensorFlow."""

    def __init__(self, workdir: Path, config: Any):
        del config
        self._workdir = workdir
        self._writer: Any = None

    def write(self, line: dict[str, Any]) -> None:
        """Writes each number as a scalar."""
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._workdir))
        for key, value in line.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(key, value, line["step"])

    def close(self) -> None:
        """Flushes the events."""
        if self._writer is not None:
            self._writer.close()


LOGGERS: dict[str, Callable[[Path, Any], Logger]] = {
    "jsonl": Jsonl,
    "tensorboard": TensorBoard,
}


def create_loggers(workdir: Path, config: Any) -> list[Logger]:
    """The loggers that `config.loggers` names.

    Examples:
        >>> from gini_jax.config import default_config
        >>> [type(logger).__name__ for logger in create_loggers(Path("."), default_config())]
        ['Jsonl', 'TensorBoard']
    """
    names = dict.fromkeys(("jsonl", *config.loggers))  # pictures are drawn from metrics.jsonl
    return [LOGGERS[name](workdir, config) for name in names]
