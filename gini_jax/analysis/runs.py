"""Reads finished runs from their folders."""

import csv
import dataclasses
import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from gini_jax.config.files import as_saved_now, from_saved
from gini_jax.config.registry import flattened
from gini_jax.errors import InputError, first_line
from gini_jax.evals import TITLES
from gini_jax.storage import read_json
from gini_jax.training.checks import inactive
from gini_jax.training.workdir import CHANGEABLE_ON_RESUME


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: its workdir.
        group: its group in comparisons: its objective, and the settings that a sweep varied.
        result: result.json.
        config: config.json.
        lines: the epochs in metrics.jsonl.
        about: dataset.json.
    """

    folder: Path
    group: str
    result: dict[str, Any]
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    about: dict[str, Any]

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that pictures are drawn from."""
        again = "result.json too, and start the run again, which then tests its checkpoint"
        return arrays_in(self.folder / "arrays.npz", again)

    @cached_property
    def bench(self) -> dict[str, dict[str, Any]]:
        """The numbers of each bench that has measured the run."""
        return benches_in(self.folder)[1]

    @cached_property
    def bench_arrays(self) -> dict[str, np.ndarray]:
        """What the benches' pictures are drawn from."""
        return benches_in(self.folder)[0]

    @property
    def layer(self) -> str:
        """The first layer that the terms act on."""
        return str(self.config["loss"]["layers"][0])

    @property
    def class_names(self) -> list[str]:
        """Names of the `K` classes."""
        return list(self.about["class_names"])

    @property
    def num_classes(self) -> int:
        """`K`."""
        return len(self.about["class_names"])

    @property
    def groups(self) -> Int[np.ndarray, " K"]:
        """The superclass of each class; the class itself where there are none."""
        return np.array(self.about["superclass_of"] or range(self.num_classes))


def benches_in(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """The arrays, and by bench the numbers, that `--mode=bench` has kept in a run's folder.

    Raises:
        InputError: a file is damaged.
    """
    arrays, numbers = folder / "bench.npz", folder / "bench.json"
    found = arrays_in(arrays, "bench.json, and run --mode=bench again") if arrays.is_file() else {}
    try:
        return found, json.loads(numbers.read_text()) if numbers.is_file() else {}
    except ValueError as error:
        raise InputError(
            f"{numbers} is damaged ({first_line(error)}); delete it, and run --mode=bench again"
        ) from error


def arrays_in(path: Path, again: str) -> dict[str, np.ndarray]:
    """The arrays of a file.

    Args:
        path: a file of `np.savez`.
        again: for the error, how to write it again.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            return dict(file)
    except Exception as error:  # a damaged file can raise anything
        raise InputError(
            f"{path} is damaged ({first_line(error)}); delete it, and {again}"
        ) from error


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are of an epoch, not of a single step.

    An incomplete last line, which a run is still writing, is left out. Gradient ratios, which were
    called shares up to version 0.2, get their current name.
    """
    text = (folder / "metrics.jsonl").read_text()
    texts = text.replace('"train_share_', '"train_gradient_ratio_').splitlines()
    lines = [json.loads(text) for text in texts if text.endswith("}")]
    return [line for line in lines if "epoch" in line]


def read_unfinished(folder: Path) -> Run:
    """A run that may still be training: its config and its epochs so far, for its curves."""
    config = as_saved_now(read_json(folder / "config.json"))
    name = f"{config['name']}:{config['objective']}, seed {config['seed']}"
    return Run(folder, name, {}, config, epochs_of(folder), {})


def read_run(folder: Path, group: str = "") -> Run:
    """A finished run.

    Raises:
        InputError: the folder holds none, or one without the arrays that pictures need.
    """
    for name in ("result.json", "config.json", "metrics.jsonl", "dataset.json", "arrays.npz"):
        if not (folder / name).is_file():
            raise InputError(
                f"{str(folder)!r} holds no finished run ({name} is missing); give the workdir of a "
                "run or of a sweep, and start its command again to finish it"
            )
    again = "delete it, and start the run again, which tests its checkpoint"
    result = read_json(folder / "result.json", again)
    config, about = (read_json(folder / f"{name}.json") for name in ("config", "dataset"))
    config = as_saved_now(config)
    lines = epochs_of(folder)
    return Run(folder, group or result["objective"], result, config, lines, about)


def read_runs(*workdirs: Path) -> dict[str, list[Run]]:
    """The finished runs of workdirs by group: one of a run, or all of a sweep.

    Runs of several workdirs form groups by their objective and the settings in which they differ;
    see `named_apart`.

    Raises:
        InputError: a workdir holds none, or two runs of a group have the same seed.
    """
    runs = [run for workdir in workdirs for run in _runs_of(workdir)]
    return grouped(named_apart(runs) if len(workdirs) > 1 else runs)


def grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by group, cross-entropy alone first, each in the order of its seeds."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    order = sorted(groups, key=lambda name: (name.partition("-")[0] != "ce", name))
    return {name: sorted(groups[name], key=lambda run: run.result["seed"]) for name in order}


def table_of(groups: dict[str, list[Run]]) -> pd.DataFrame:
    """A row for each run: its group, and what result.json holds; see `frame_of`."""
    return frame_of({"group": name, **run.result} for name, runs in groups.items() for run in runs)


def frame_of(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """A table of rows that hold result.json.

    `attrs["metrics"]` maps each metric that tables show to its title and whether larger is better.
    It includes the metrics of plugin evaluations.

    Examples:
        >>> frame = frame_of([{"seed": 0, "titles": {"silent": ["Silent features", True]}}])
        >>> list(frame), frame.attrs["metrics"]["silent"]
        (['seed'], ['Silent features', True])
    """
    kept, metrics = [], dict(TITLES)
    for row in rows:
        metrics |= row.get("titles", {})
        kept.append({key: value for key, value in row.items() if key != "titles"})
    frame = pd.DataFrame(kept)
    frame.attrs["metrics"] = metrics
    return frame


def named_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs with their groups: the objective, and each setting in which the runs differ.

    The data count as a setting, by their digests. A term's weight and settings count only for
    objectives that have the term. If more than three settings differ, the name of a run's folder
    replaces them in the group's name, with a number if different runs have the same name.

    Raises:
        InputError: two runs of a group have the same seed.
    """
    differing = differing_settings(runs)
    groups: dict[tuple[str, ...], str] = {}  # what a group's runs share, and the group's name
    named: dict[tuple[str, int], Run] = {}
    for run in runs:
        read = _read_settings(run)
        own = [f"{path}={read[path]}" for path in differing if path in read]
        shared = str(run.config["objective"]), *own
        if shared not in groups:
            shown = [f"run={run.folder.name}"] if len(differing) > 3 else own
            name = "-".join([shared[0], *shown])
            groups[shared] = _not_among(name, groups.values())
        group = groups[shared]
        key = group, run.result["seed"]
        if key in named:
            raise InputError(
                f"{str(named[key].folder)!r} and {str(run.folder)!r} have the same settings, data "
                f"and seed {key[1]}; leave one of them out"
            )
        named[key] = dataclasses.replace(run, group=group)
    return list(named.values())


def _not_among(name: str, taken: Iterable[str]) -> str:
    """A name, with a number if it is taken.

    Examples:
        >>> _not_among("ce", ["ce", "ce (2)"])
        'ce (3)'
    """
    names = {*taken}
    numbered = (f"{name} ({i})" for i in itertools.count(2))
    return name if name not in names else next(x for x in numbered if x not in names)


def differing_settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Settings in which runs differ, besides objective and seed, and their values."""
    read = [_read_settings(run) for run in runs]
    found = {}
    for path in sorted({path for settings in read for path in settings}):
        values = dict.fromkeys(str(settings[path]) for settings in read if path in settings)
        if len(values) > 1 and path not in ("seed", "objective", "name", *CHANGEABLE_ON_RESUME):
            found[path] = list(values)
    return found


def _read_settings(run: Run) -> dict[str, Any]:
    """The settings that a run reads, and under `data` a digest of its data.

    Settings that it does not read are left out, because they do not make runs differ.
    """
    config = from_saved(run.config)
    ignored = inactive(config)
    found = {
        path.removesuffix(".weight"): x
        for path, x in flattened(config).items()
        if path not in ignored
    }
    read = [run.about[key] for key in ("class_names", "examples")]
    # Without decoding, or from an earlier version, only the names and sizes of data are known.
    read.append(run.about.get("digests") or {})
    digest = hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:6]
    return found | {"data": digest}


def _runs_of(workdir: Path) -> list[Run]:
    if (workdir / "result.json").is_file():
        return [read_run(workdir)]
    if found := [read_run(path, path.name.rpartition("-seed")[0]) for path in _members(workdir)]:
        return found
    raise InputError(
        f"{str(workdir)!r} holds no finished run; give the workdir of a run or of a sweep"
    )


def _members(workdir: Path) -> list[Path]:
    """The folders of a sweep's finished members; those in sweep.csv, where there is one."""
    folders = sorted(path.parent for path in workdir.glob("*-seed*/result.json"))
    table = workdir / "sweep.csv"
    if not table.is_file():
        return folders
    own = {row["member"] for row in csv.DictReader(table.read_text().splitlines())}
    if others := [folder.name for folder in folders if folder.name not in own]:
        print(
            f"left out, because the sweep's command did not name them: {', '.join(others)}; a "
            "sweep command that names them includes them"
        )
    return [folder for folder in folders if folder.name in own]
