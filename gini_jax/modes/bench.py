"""Measures what the features of finished runs are good for: retrieval, robustness and others."""

import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from tqdm import tqdm

from gini_jax.analysis.bench_pictures import pictures, varies
from gini_jax.analysis.report import write_report
from gini_jax.analysis.runs import Run, benches_in, read_runs, table_of
from gini_jax.analysis.statistics import comparisons, number
from gini_jax.data.cache import exclusive_lock
from gini_jax.downstream import BENCHES, benches_of
from gini_jax.downstream.subject import Subject, subject_of
from gini_jax.errors import InputError
from gini_jax.modes.train import cache_compilations
from gini_jax.storage import csv_text, is_remote, json_text, write
from gini_jax.training.workdir import make_workdir

FLAGS: dict[str, Any] = {
    "benches": ("all", str, f"Benches, separated by commas, or all: {', '.join(BENCHES)}."),
    "outliers": (
        "",
        str,
        "Another data set, or folder:PATH, whose images the bench outliers takes.",
    ),
    "others": ((), tuple, ""),  # the other folders of --workdir
}
USES = ("dataset.data_dir",)


def main(
    config: ConfigDict,
    workdir: Path,
    *,
    benches: str = "all",
    outliers: str = "",
    others: Sequence[Path] = (),
) -> pd.DataFrame:
    """Runs benches on the best checkpoints of finished runs.

    A run's numbers are kept in its folder, in bench.json, and the arrays of its curves in
    bench.npz; a bench is not run again on a run that already has its numbers.

    Args:
        config: only `dataset.data_dir` is used, if it differs from that of the runs.
        workdir: the folder of a run or sweep; the tables are written there.
        benches: their names, separated by commas, or `all`.
        outliers: see `gini_jax.downstream.outliers`.
        others: workdirs of runs and sweeps to compare with it.

    Returns:
        What bench.csv holds: a row for each run. bench.md compares them, and bench_NAME.png are
        their pictures.

    Raises:
        InputError: a workdir holds no finished run, a bench is unknown, or none of those that are
            named fits a run.
    """
    modules = benches_of(benches)
    groups = read_runs(workdir, *others)
    runs = [run for several in groups.values() for run in several]
    make_workdir(workdir, "bench.md is written there")
    cache_compilations(workdir)
    measuring = {name: x for name, x in modules.items() if hasattr(x, "measure")}
    _check_varied(groups, modules, named=benches != "all" and not measuring)
    data_dir = config.dataset.data_dir if config else ""
    bar = tqdm(total=len(runs) * len(measuring), unit=" benches", disable=None)
    with bar:
        reasons = [_measured(run, measuring, outliers, data_dir, bar) for run in runs]
    _tell_unfit(measuring, reasons, named=benches != "all")
    groups = read_runs(workdir, *others)  # with their new numbers
    table = _table(groups, measuring)
    write(workdir / "bench.csv", csv_text(table))
    metrics = {key: row for module in measuring.values() for key, row in module.KEYS.items()}
    write(workdir / "bench.md", _markdown(table, metrics))
    drawn = list(pictures(groups, modules))
    for name, png in drawn:
        write(workdir / name, png)
    write_report(workdir, *others)
    _print(table, metrics)
    names = ", ".join(["bench.csv", "bench.md", *(name for name, _ in drawn)])
    print(f"written to {workdir}: {names}; the report shows them too")
    return table


def _check_varied(
    groups: dict[str, list[Run]], modules: Mapping[str, ModuleType], named: bool
) -> None:
    """Refuses benches that compare a sweep's runs by a setting that the runs do not vary."""
    settings = {name: x.SETTING for name, x in modules.items() if hasattr(x, "SETTING")}
    if named and not any(varies(groups, path) for path in settings.values()):
        name, path = next(iter(settings.items()))
        raise InputError(
            f"--benches={name} compares the runs of a sweep that varied {path}, and these did not; "
            f"give the --workdir of one, as --mode=sweep --vary={path}=... makes it"
        )


def _tell_unfit(names: Iterable[str], reasons: Sequence[Mapping[str, str]], named: bool) -> None:
    """Prints which benches were left out for some runs; of named benches, at least one must fit."""
    unfit = {name: [of_run[name] for of_run in reasons if name in of_run] for name in names}
    if named and unfit and all(len(own) == len(reasons) for own in unfit.values()):
        reason = "; ".join(f"{name}: {own[-1]}" for name, own in unfit.items())
        raise InputError(f"--benches={','.join(unfit)} fits none of the runs: {reason}")
    for name, own in unfit.items():
        if own:
            some = " for some runs" if len(own) < len(reasons) else ""
            print(f"{name} left out{some}: {own[-1]}")


def _measured(
    run: Run, modules: Mapping[str, ModuleType], outliers: str, data_dir: str, bar: tqdm
) -> dict[str, str]:
    """Runs the benches that a run lacks; returns, by name, why some benches do not fit it."""
    numbers = run.bench
    subject: Subject | None = None
    reasons = {}
    for name, module in modules.items():
        bar.set_postfix_str(f"{run.folder.name}: {name}")
        other = name == "outliers" and outliers and numbers.get(name, {}).get(name) != outliers
        if name not in numbers or other:
            subject = subject or subject_of(run.folder, outliers, data_dir)
            unfit = getattr(module, "unfit", None)
            if unfit and (reason := unfit(subject)):
                reasons[name] = reason
            else:
                _keep(run.folder, name, module.measure(subject))
        bar.update()
    return reasons


def _keep(folder: Path, name: str, found: Mapping[str, Any]) -> None:
    """Adds what a bench has found to bench.json and bench.npz.

    Another process may add another bench, so only one at a time reads, adds and writes.
    """
    with exclusive_lock(folder, "adds a bench") if not is_remote(folder) else nullcontext():
        arrays, numbers = benches_in(folder)
        arrays |= {key: value for key, value in found.items() if isinstance(value, np.ndarray)}
        numbers[name] = {key: x for key, x in found.items() if not isinstance(x, np.ndarray)}
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
        write(folder / "bench.npz", packed.getvalue())
        write(folder / "bench.json", json_text(numbers))


def _table(groups: dict[str, list[Run]], modules: Mapping[str, ModuleType]) -> pd.DataFrame:
    """A row for each run: group, seed, and the numbers of its benches."""
    table = table_of(groups)[["group", "config_name", "objective", "seed", "test_accuracy"]]
    found = [
        {key: value for name in modules for key, value in run.bench.get(name, {}).items()}
        for runs in groups.values()
        for run in runs
    ]
    return pd.concat([table, pd.DataFrame(found, index=table.index)], axis=1)


def _markdown(table: pd.DataFrame, metrics: Mapping[str, tuple[str, bool]]) -> str:
    return f"# {table.iloc[0]['config_name']}: benches of {len(table)} runs\n\n" + comparisons(
        table, metrics
    )


def _print(table: pd.DataFrame, metrics: Mapping[str, tuple[str, bool]]) -> None:
    """The mean of each number, a line each, by group."""
    for key, (title, _) in metrics.items():
        if key in table and table[key].notna().any():
            means = table.groupby("group", sort=False)[key].mean()
            cells = "  ".join(f"{group} {number(x)}" for group, x in means.items())
            print(f"  {title}: {cells}")
    sys.stdout.flush()
