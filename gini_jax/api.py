"""Training from Python: a config by name, a run with its curves and its network, comparisons."""

import contextlib
import dataclasses
import hashlib
import html
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import pandas as pd
from ml_collections import ConfigDict

import gini_jax.config.defaults  # noqa: F401  # fills the table of settings
from gini_jax.analysis import figures
from gini_jax.analysis.report import page_of
from gini_jax.analysis.runs import Run, grouped, named_apart, read_run, table_of
from gini_jax.analysis.statistics import compare_by_seed
from gini_jax.config.change import changed, check_keys
from gini_jax.config.files import read_config
from gini_jax.data.arrays import in_memory
from gini_jax.devices import settings_kept
from gini_jax.drawing import drawn
from gini_jax.errors import InputError, unknown_name
from gini_jax.evals import TITLES
from gini_jax.modes import train as train_mode
from gini_jax.storage import run_path, write
from gini_jax.trained import Trained, load
from gini_jax.training.loop import Callback
from gini_jax.training.workdir import config_json, holds_result


def get_config(name: str = "digits", /, **settings: Any) -> ConfigDict:
    """The settings of a run: those of a config file, with some of them changed.

    Args:
        name: a shipped config, or the path of a file; `NAME:OBJECTIVE` chooses the objective.
        **settings: what to change, by path; those in a section as `**{"model.width": 16}`.

    Returns:
        A ConfigDict, which you can change further and pass to `gini_jax.train`.

    Raises:
        InputError: a name is unknown, or a value is of another type than its setting.

    Examples:
        >>> import gini_jax
        >>> found = gini_jax.get_config("digits:gini", num_epochs=5, **{"loss.terms.gini": 0.1})
        >>> found.num_epochs, found.loss.terms.to_dict()
        (5, {'gini': {'weight': 0.1}})
    """
    return changed(read_config(name), settings)


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run; a notebook shows its numbers and curves.

    Attributes:
        run: its files.
    """

    run: Run

    @property
    def workdir(self) -> Path:
        """The run's folder."""
        return self.run.folder

    @property
    def numbers(self) -> dict[str, Any]:
        """What result.json holds."""
        return self.run.result

    @property
    def curves(self) -> pd.DataFrame:
        """A row per epoch: the averages over its steps, and the validation where there was one."""
        return pd.DataFrame(self.run.lines).set_index("epoch")

    @cached_property
    def trained(self) -> Trained:
        """The network, from the best checkpoint, with `predict` and `features`."""
        return load(self.workdir)

    def __repr__(self) -> str:
        """The run in one line."""
        about, accuracy = train_mode.title_of(self.numbers), self.numbers["test_accuracy"]
        return f"Result({about}: test accuracy {accuracy:.4f}, in {self.workdir})"

    def _repr_html_(self) -> str:
        metrics = TITLES | self.numbers.get("titles", {})
        values = {title: self.numbers.get(metric) for metric, (title, _) in metrics.items()}
        table = pd.Series({k: v for k, v in values.items() if v is not None}, dtype=float)
        title = html.escape(train_mode.title_of(self.numbers))
        head = f"<p><b>{title}</b>, in {html.escape(str(self.workdir))}</p>"
        shown = table.to_frame("").to_html(float_format=lambda x: f"{x:.4f}", border=0)
        groups = {self.run.group: [self.run]}
        return head + shown + drawn(figures.curves, groups, pixels=True)


def train(
    config: ConfigDict,
    workdir: str | Path | None = None,
    devices: Sequence[jax.Device] | None = None,
    *,
    data: Any = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Trains a run to its end and shows its progress; a finished run is not trained again.

    It can be called from any thread, and in several at once, which then take turns. Signal handlers
    and jax's settings are afterwards what they were.

    Args:
        config: the settings, as from `gini_jax.get_config`.
        workdir: the run's folder; by default a folder in `runs` that is named after the settings.
            An interrupted run in it is resumed.
        devices: to train on; all by default.
        data: images and labels in memory, in the place of `config.dataset.name`: `(images,
            labels)`, divided by `dataset.test_size` and `val_size` as a folder is; or `{"train":
            (images, labels), "test": ...}`, with `"val"` and `"class_names"` if wanted. Images are
            uint8, `[N, H, W]` or `[N, H, W, 1 or 3]`; labels are `[N]` integers or strings.
        callbacks: see `gini_jax.Callback`; what one raises ends the run, which can be resumed.

    Returns:
        The run: `numbers`, `curves`, and the network as `trained`.

    Raises:
        InputError: bad input, before any long work.
        RunError: the run could not continue.
        Stopped: it was interrupted; the same call resumes it.
    """
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"config is a {type(config).__name__}; give what gini_jax.get_config(name) returns, "
            'such as gini_jax.get_config("digits:gini")'
        )
    devices = _checked_devices(devices)
    if isinstance(callbacks, Callback):
        raise InputError(f"callbacks={callbacks!r} is one callback; give a list: [{callbacks!r}]")
    callbacks = list(callbacks)
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise InputError(
                f"callbacks holds {callback!r}; each must be an object of a class that is derived "
                "from gini_jax.Callback"
            )
    config = config.copy_and_resolve_references()
    with contextlib.ExitStack() as stack:
        if data is not None:
            config.dataset.update(name=stack.enter_context(in_memory(data)), num_classes=0)
        check_keys(config)
        folder = Path("runs") / _name_of(config)
        if workdir is not None:
            folder = run_path("workdir", str(workdir))
        if not holds_result(folder, config):
            stack.enter_context(settings_kept())
            train_mode.main(config, folder, devices=devices, callbacks=callbacks)
    return Result(read_run(folder))


def _checked_devices(devices: Any) -> Sequence[jax.Device] | None:
    """The devices to train on, as they were given.

    Raises:
        InputError: they are not a list of distinct jax devices, or the list is empty.
    """
    if devices is None:
        return None
    several = isinstance(devices, Iterable) and not isinstance(devices, str)
    found = list(devices) if several else [devices]
    fit = all(isinstance(device, jax.Device) for device in found) and several
    if not found or not fit or len(set(found)) < len(found):
        raise InputError(
            f"devices={devices!r} must be a list of different jax devices, such as "
            "jax.devices()[:1], or None for all"
        )
    return found


def _name_of(config: ConfigDict) -> str:
    """The name of a config's folder; different settings have different names."""
    digest = hashlib.sha256(config_json(config).encode()).hexdigest()[:6]
    return f"{config.name or 'run'}-{config.objective}-seed{config.seed}-{digest}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs side by side; a notebook shows their table and pictures.

    Attributes:
        groups: the runs of each group, in the order of their seeds, by the group's name.
    """

    groups: dict[str, list[Run]]

    def __repr__(self) -> str:
        """How many runs each group has."""
        return f"Comparison({', '.join(f'{name}: {len(r)}' for name, r in self.groups.items())})"

    def table(self, metric: str = "test_accuracy") -> pd.DataFrame:
        """A row per group: mean, spread, and the difference from `ce`, or from the first group.

        Args:
            metric: a key of result.json.

        Returns:
            What `gini_jax.analysis.statistics.compare_by_seed` gives, paired by seed.

        Raises:
            InputError: there is no such metric.
        """
        frame = table_of(self.groups)
        metrics = frame.attrs["metrics"]
        if metric not in metrics:
            raise unknown_name("metric", metric, metrics)
        base = "ce" if "ce" in self.groups else next(iter(self.groups))
        return compare_by_seed(frame, metric, base, metrics[metric][1])

    def save(self, path: str | Path) -> None:
        """Writes the whole page, as `--mode=report` does."""
        write(Path(path), page_of(self.groups))

    def _repr_html_(self) -> str:
        tables = {}
        for metric in ("test_accuracy", "test_class_accuracy", "feature_gini", "scatter_ratio"):
            if any(run.result.get(metric) is None for runs in self.groups.values() for run in runs):
                continue
            found = self.table(metric)
            tables[TITLES[metric][0]] = found["mean"]
            if "difference" in found:
                tables[f"{TITLES[metric][0]}, difference"] = found["difference"]
        count = {name: len(runs) for name, runs in self.groups.items()}
        shown = pd.DataFrame({"seeds": pd.Series(count), **tables})
        return (
            shown.to_html(float_format=lambda x: f"{x:.4f}", na_rep="", border=0)
            + drawn(figures.curves, self.groups, pixels=True)
            + drawn(figures.impurity, self.groups, pixels=True)
        )


def compare(
    runs: Iterable[Result | ConfigDict | str | Path] | Result | ConfigDict | str | Path,
    seeds: Sequence[int] = (),
) -> Comparison:
    """Compares runs, paired by seed.

    Args:
        runs: results of `gini_jax.train`, workdirs, or configs, which are trained first; or one.
        seeds: those with which each config is trained; that of the config by default.

    Returns:
        The runs in groups of the same objective and settings.

    Raises:
        InputError: a workdir holds no finished run, or two runs are alike.

    Examples:
        >>> compare([])
        Traceback (most recent call last):
        gini_jax.errors.InputError: there is nothing to compare; give results, workdirs or configs
    """
    items = [runs] if isinstance(runs, (Result, ConfigDict, str, Path)) else list(runs)
    found = [run for item in items for run in _runs_of(item, [int(seed) for seed in seeds])]
    if not found:
        raise InputError("there is nothing to compare; give results, workdirs or configs")
    return Comparison(grouped(named_apart(found)))


def _runs_of(item: Result | ConfigDict | str | Path, seeds: Sequence[int]) -> list[Run]:
    if isinstance(item, Result):
        return [item.run]
    if not isinstance(item, ConfigDict):
        if len(seeds):
            raise InputError(
                f"seeds={list(seeds)} are for configs, which are trained with them; {str(item)!r} "
                "is a run, which has its own: leave seeds out"
            )
        return [read_run(run_path("workdir", str(item)))]
    found = []
    for seed in seeds or [item.seed]:
        own = item.copy_and_resolve_references()
        own.seed = seed
        found.append(train(own).run)
    return found
