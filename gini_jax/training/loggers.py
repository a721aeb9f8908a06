"""Where a run's metrics are written. A new logger takes one class and one line in `LOGGERS`."""

import contextlib
import importlib.util
import io
import os
import struct
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from gini_jax.config.registry import Registry, flattened
from gini_jax.errors import InputError, first_line
from gini_jax.storage import add_line, is_remote, local_folder, upload, write


class Logger(Protocol):
    """Receives the metrics of epochs and some steps, and pictures of the tested checkpoint."""

    def write(self, line: dict[str, Any]) -> None:
        """Writes a line of metrics; `line["step"]` is the step."""

    def draw(self, pictures: Mapping[str, bytes], step: int) -> None:
        """Shows pictures, PNGs by name."""

    def close(self) -> None:
        """Writes everything that is still buffered."""


def run_name(config: ConfigDict) -> str:
    """A run's name for people: config, objective and seed."""
    return f"{config.name}-{config.objective}-seed{config.seed}"


def numbers_of(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line; names and missing values are left out."""
    return {key: value for key, value in line.items() if isinstance(value, (int, float))}


def is_of_training(line: dict[str, Any]) -> bool:
    """Whether a line holds training metrics, not those of the tested checkpoint."""
    return not any(key.startswith("test_") for key in line)


def remembered(path: Path, create: Callable[[], str]) -> str:
    """A logging service's id of a run, kept in the workdir so that a resumed run finds it."""
    if not path.exists():
        write(path, create())
    return path.read_text().strip()


class Jsonl:
    """metrics.jsonl: one line of JSON for each epoch and for some steps."""

    def __init__(self, workdir: Path, config: ConfigDict):
        del config
        self._path = workdir / "metrics.jsonl"

    def write(self, line: dict[str, Any]) -> None:
        """Adds the line."""
        add_line(self._path, line)

    def draw(self, pictures: Mapping[str, bytes], step: int) -> None:
        """Does nothing: the workdir has its own pictures."""

    def close(self) -> None:
        """Does nothing: no line is buffered."""


class TensorBoard:
    """Event files for TensorBoard; written without TensorFlow.

    Events are written at once. tensorboardX's SummaryWriter hands them to a thread, and its `flush`
    does not wait for that thread, so that a killed run may lack its last lines.
    """

    def __init__(self, workdir: Path, config: ConfigDict):
        del config
        self._workdir = workdir
        self._stack = contextlib.ExitStack()
        self._writer: Any = None
        self._folder = workdir

    def write(self, line: dict[str, Any]) -> None:
        """Writes each number as a scalar."""
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.summary import scalar

        contents: list[dict[str, Any]] = []
        if self._writer is None and is_of_training(line):
            # The resumed run replaces what the interrupted run wrote from here on.
            contents.append({"file_version": "brain.Event:2"})
            contents.append({"session_log": SessionLog(status=SessionLog.START)})
        contents += [{"summary": scalar(key, value)} for key, value in numbers_of(line).items()]
        self._add(contents, line["step"])

    def draw(self, pictures: Mapping[str, bytes], step: int) -> None:
        """Writes each picture as an image."""
        from tensorboardX.proto.summary_pb2 import Summary

        contents = []
        for name, png in pictures.items():
            width, height = struct.unpack(">II", png[16:24])  # of PNG's first chunk
            image = Summary.Image(
                height=height, width=width, colorspace=4, encoded_image_string=png
            )
            contents.append({"summary": Summary(value=[Summary.Value(tag=name, image=image)])})
        self._add(contents, step)

    def _add(self, contents: list[dict[str, Any]], step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        if self._writer is None:
            self._open()
        for content in contents:
            self._writer.write_event(Event(step=step, wall_time=time.time(), **content))
        self._writer.flush()
        if is_remote(self._workdir):
            upload(self._folder, self._workdir)

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
        self._stack.close()

    def _open(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self._folder = self._stack.enter_context(local_folder(self._workdir))
        # File names contain the second; the suffix separates files of the same second.
        self._writer = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")


class WandB:
    """Weights & Biases, project `WANDB_PROJECT` or gini_jax; resuming continues the same run.

    `WANDB_MODE=offline` keeps everything in the workdir, for `wandb sync` later.
    """

    needs = "wandb"

    def __init__(self, workdir: Path, config: ConfigDict):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "gini_jax"),
            name=run_name(config),
            id=remembered(workdir / "wandb_id.txt", lambda: uuid.uuid4().hex[:8]),
            dir=None if is_remote(workdir) else str(workdir),
            config=config.to_dict(),
            resume="allow",
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, line: dict[str, Any]) -> None:
        """Logs every number."""
        self._run.log(numbers_of(line))

    def draw(self, pictures: Mapping[str, bytes], step: int) -> None:
        """Logs each picture."""
        import wandb
        from PIL import Image

        images = {name: wandb.Image(Image.open(io.BytesIO(png))) for name, png in pictures.items()}
        self._run.log({"step": step, **images})

    def close(self) -> None:
        """Marks the run as finished or failed there."""
        self._run.finish(exit_code=int(_unwinding()))


class MLflow:
    """MLflow: experiment gini_jax at `MLFLOW_TRACKING_URI`, or in mlflow.db in the workdir.

    Pictures become artifacts there, or files in the workdir's folder mlartifacts.
    """

    needs = "mlflow"

    def __init__(self, workdir: Path, config: ConfigDict):
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # else it tries for minutes
        server, here = os.environ.get("MLFLOW_TRACKING_URI"), workdir.resolve()
        self._client = MlflowClient(server or f"sqlite:///{here / 'mlflow.db'}")
        found = self._client.get_experiment_by_name("gini_jax")
        pictures = None if server else str(here / "mlartifacts")
        experiment = (
            found.experiment_id if found else self._client.create_experiment("gini_jax", pictures)
        )

        def new_run() -> str:
            run = self._client.create_run(experiment, run_name=run_name(config))
            for path, value in flattened(config).items():
                self._client.log_param(run.info.run_id, path, value)
            return run.info.run_id

        memory = workdir / "mlflow_id.txt"
        self._id = remembered(memory, new_run)
        try:
            self._client.update_run(self._id, status="RUNNING")
        except MlflowException:  # another store, or one that was deleted
            write(memory, new_run())
            self._id = remembered(memory, new_run)
        written = self._client.get_metric_history(self._id, "step")
        self._written = {int(metric.value) for metric in written}

    def write(self, line: dict[str, Any]) -> None:
        """Logs every number."""
        if line["step"] in self._written and is_of_training(line):
            return  # the run logged it before it was interrupted
        for key, value in numbers_of(line).items():
            self._client.log_metric(self._id, key, value, step=line["step"])

    def draw(self, pictures: Mapping[str, bytes], step: int) -> None:
        """Logs each picture as an artifact."""
        from PIL import Image

        for name, png in pictures.items():
            self._client.log_image(self._id, Image.open(io.BytesIO(png)), f"{name}.png")

    def close(self) -> None:
        """Marks the run as finished or failed there."""
        self._client.set_terminated(self._id, "FAILED" if _unwinding() else "FINISHED")


def _is_logger(part: Any) -> bool:
    has_all = all(hasattr(part, method) for method in ("write", "draw", "close"))
    return callable(part) and (has_all or not isinstance(part, type))


LOGGERS = Registry(
    "loggers",
    {"jsonl": Jsonl, "tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow},
    _is_logger,
    "a class with write, draw and close, like gini_jax.training.loggers.Logger",
)


def check_loggers(config: ConfigDict, workdir: Path) -> None:
    """Refuses a logger that cannot write, before any work starts.

    Raises:
        InputError: its library is missing, or it cannot write to a bucket.

    Examples:
        >>> from gini_jax.config import default_config
        >>> check_loggers(default_config(), Path("runs/digits"))
    """
    elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
    if "mlflow" in config.loggers and is_remote(workdir) and not elsewhere:
        raise InputError(
            f"loggers={tuple(config.loggers)}: mlflow cannot keep its database in {workdir}; "
            "set the environment variable MLFLOW_TRACKING_URI, or leave mlflow out"
        )
    for name in config.loggers:
        library = getattr(LOGGERS.find(name), "needs", None)
        if library and importlib.util.find_spec(library) is None:
            raise InputError(
                f"loggers={tuple(config.loggers)}: {name} needs the library {library}; "
                "pip install 'gini_jax[loggers]', or leave it out"
            )


def log_result(
    workdir: Path, config: ConfigDict, result: dict[str, Any], pictures: Mapping[str, bytes]
) -> None:
    """Sends the test metrics and pictures to all loggers except metrics.jsonl.

    Args:
        workdir: of the run.
        config: its settings.
        result: what result.json holds.
        pictures: PNGs by name.
    """
    tested = {key: result[key] for key in result if key.startswith(("test_", "feature_"))}
    for name in dict.fromkeys(config.loggers):
        if name == "jsonl":
            continue
        try:
            logger = BestEffortLogger(name, LOGGERS.find(name)(workdir, config))
            logger.write({"step": result["steps"], **tested})
            logger.draw(pictures, result["steps"])
            logger.close()
        except Exception as error:  # from its library; the run has finished anyway
            print(f"warning: {name} did not get the test metrics ({error})", file=sys.stderr)


def _unwinding() -> bool:
    """Whether an exception ends the run: a NaN, a signal, a full disk."""
    return sys.exc_info()[0] is not None


class BestEffortLogger:
    """A logger to a service: if the service fails during a run, a warning is printed once."""

    def __init__(self, name: str, logger: Logger):
        self._name, self._logger, self._warned = name, logger, False

    def write(self, line: dict[str, Any]) -> None:
        """Passes the line on."""
        self._try(lambda: self._logger.write(line))

    def draw(self, pictures: Mapping[str, bytes], step: int) -> None:
        """Passes the pictures on."""
        self._try(lambda: self._logger.draw(pictures, step))

    def close(self) -> None:
        """Passes it on."""
        self._try(self._logger.close)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            if not self._warned:
                text = f"warning: {self._name} failed ({error}); metrics.jsonl has every line"
                print(text, file=sys.stderr)
            self._warned = True


def create_loggers(workdir: Path, config: ConfigDict) -> list[Logger]:
    """Creates the loggers that `config.loggers` names, and always `jsonl`.

    Raises:
        InputError: one of them cannot start.

    Examples:
        >>> from gini_jax.config import default_config
        >>> [type(logger).__name__ for logger in create_loggers(Path("."), default_config())]
        ['Jsonl', 'BestEffortLogger']
    """
    names = dict.fromkeys(("jsonl", *config.loggers))  # pictures are drawn from metrics.jsonl
    loggers: list[Logger] = []
    own = config.copy_and_resolve_references()  # a logger may change its copy
    for name in names:
        if name == "jsonl":
            loggers.append(Jsonl(workdir, config))
            continue
        try:
            loggers.append(BestEffortLogger(name, LOGGERS.find(name)(workdir, own)))
        except (Exception, SystemExit) as error:  # of its library: no login, no connection
            raise InputError(
                f"loggers={tuple(config.loggers)}: {name} cannot start ({first_line(error)}); fix "
                "that, or leave the logger out"
            ) from error
    return loggers
