"""Collects finished sweeps into results/sweeps/, from which tables and pictures are made.

`PYTHONPATH=. python docs/collect.py RUNS NAME` reads the sweeps of `FILES[NAME]` in the folder
RUNS, where the commands in results.md put them. It writes two files: NAME.csv, a row for each run
with its result and the settings in which the runs differ; and NAME_shares.csv, by term and
validated epoch the value of the term and its share of the gradient.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gini_jax.config import FREE, default_config, flattened
from gini_jax.losses.terms import PRESETS

SWEEPS = Path(__file__).resolve().parent.parent / "results" / "sweeps"


class Sweep(NamedTuple):
    """Runs to collect.

    Attributes:
        folder: of the sweep, in RUNS.
        label: what to add to the name of each group.
        only: the groups to take; all by default.
        seeds: how many seeds to take, from 0 on.
    """

    folder: str
    label: str = ""
    only: tuple[str, ...] = ()
    seeds: int = 100


BASE = Sweep("caltech101_64", only=("ce", "gini_kl"))
FILES = {
    "digits": [Sweep("digits_sweep")],
    "caltech101_64": [Sweep("caltech101_64")],
    "caltech101_64_resnet17": [Sweep("caltech101_64_resnet17")],
    "caltech101_32_cvt13": [Sweep("caltech101_32_cvt13")],
    "cifar100": [Sweep("cifar100_width8")],
    "cifar100_h200": [Sweep("cifar100")],
    "caltech101_64_held": [
        BASE,
        *(Sweep(f"caltech101_64_held{share}", f", {share} %") for share in (1, 3, 10, 30)),
    ],
    "caltech101_64_sensitivity": [
        BASE._replace(seeds=3),
        Sweep("sensitivity"),
        Sweep("sensitivity_decay", "-loss.running_decay=0.9, made up by weights of 5"),
    ],
    "caltech101_64_batches": [
        BASE._replace(seeds=3),
        Sweep("caltech101_64_batch64", ", 64"),
        Sweep("caltech101_64_batch512", ", 512"),
        Sweep("caltech101_64_balanced", ", class-balanced"),
    ],
}


def collect(runs: Path, name: str) -> None:
    """Writes the two files of a name."""
    results, shares = [], []
    for sweep in FILES[name]:
        for folder in sorted((runs / sweep.folder).glob("*-seed*"), key=by_objective):
            group, _, seed = folder.name.rpartition("-seed")
            taken = int(seed) < sweep.seeds and group in (sweep.only or (group,))
            if taken and (folder / "result.json").is_file():
                own = {"member": folder.name, "group": group + sweep.label}
                results.append(own | settings_of(folder) | read(folder / "result.json"))
                shares += shares_of(folder, own["group"], int(seed))
    table = pd.DataFrame(results)
    fixed = [
        column
        for column in table.columns
        if column.startswith("config.") and (table.groupby("objective")[column].nunique() < 2).all()
    ]
    table.drop(columns=fixed).to_csv(SWEEPS / f"{name}.csv", index=False)
    columns = ["group", "seed", "epoch", "term", "share", "value"]
    pd.DataFrame(shares, columns=columns).to_csv(SWEEPS / f"{name}_shares.csv", index=False)
    print(table.groupby("group", sort=False)["test_accuracy"].agg(["count", "mean", "std"]))


def by_objective(folder: Path) -> tuple[int, str, int]:
    """The place of a member among those of its sweep: objectives in their usual order."""
    group, _, seed = folder.name.rpartition("-seed")
    return list(PRESETS).index(group.partition("-")[0]), group, int(seed)


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of a run by path, as `config.PATH`; those of before a setting existed too."""
    settings = flattened(default_config("ce")) | flattened(read(folder / "config.json"))
    return {
        f"config.{path}": str(value) if isinstance(value, (list, tuple, bool)) else value
        for path, value in settings.items()
        if path not in ("seed", "objective", "name", *FREE)
    }


def shares_of(folder: Path, group: str, seed: int) -> list[tuple[Any, ...]]:
    """The terms of a run by epoch."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        (group, seed, line["epoch"], term, f"{line[key]:.6g}", f"{line[f'train_{term}']:.6g}")
        for line in lines
        for key in line
        if (term := key.removeprefix("train_share_")) != key
    ]


def read(path: Path) -> dict[str, Any]:
    """A JSON file."""
    return json.loads(path.read_text())


if __name__ == "__main__":
    collect(Path(sys.argv[1]), sys.argv[2])
