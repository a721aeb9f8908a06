"""Collects finished sweeps into results/sweeps/, from which tables and pictures are made.

`PYTHONPATH=. python docs/collect.py RUNS NAME` reads the sweeps of `FILES[NAME]` in the folder
RUNS, where the commands in results.md put them. It writes two files: NAME.csv, a row for each run
with its result and the settings in which runs of one objective differ; and
NAME_gradient_ratios.csv, the gradient ratio and the value of each term, by validated epoch.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gini_jax.analysis.runs import Run, epochs_of
from gini_jax.analysis.sensitivity import varied_table
from gini_jax.losses.terms import PRESETS
from gini_jax.training.workdir import config_json, saved_config

SWEEPS = Path(__file__).resolve().parent.parent / "results" / "sweeps"

RATIO = "train_gradient_ratio_"  # of a term's gradient to cross-entropy's


class Sweep(NamedTuple):
    """Runs to collect.

    Attributes:
        folder: of the sweep, in RUNS.
        label: what to add to the name of each group.
        only: the groups to take; all by default.
        seeds: how many seeds to take, from 0 on; all by default.
    """

    folder: str
    label: str = ""
    only: tuple[str, ...] = ()
    seeds: int | None = None


BASE = Sweep("caltech101_64", only=("ce", "gini_kl"))
FILES = {
    "digits": [Sweep("digits_sweep")],
    "digits_baselines": [Sweep("digits_baselines")],
    "cifar100_hierarchy": [Sweep("cifar100_hierarchy")],
    "caltech101_64": [Sweep("caltech101_64")],
    "caltech101_64_resnet17": [Sweep("caltech101_64_resnet17")],
    "caltech101_32_cvt13": [Sweep("caltech101_32_cvt13")],
    "cifar100": [Sweep("cifar100_width8")],
    "finetune": [Sweep("finetune"), Sweep("finetune_center")],
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
    """Writes the two files of a name.

    Raises:
        SystemExit: a sweep is not there; nothing is written.
    """
    results, ratios = [], []
    for sweep in FILES[name]:
        folders = sorted((runs / sweep.folder).glob("*-seed*"), key=by_objective)
        if not folders:
            raise SystemExit(f"{runs / sweep.folder} holds no runs; nothing was written")
        for folder in folders:
            group, _, seed = folder.name.rpartition("-seed")
            if group not in (sweep.only or (group,)):
                continue
            if sweep.seeds is not None and int(seed) >= sweep.seeds:
                continue
            if not (folder / "result.json").is_file():
                print(f"{folder} has not finished; left out")
                continue
            group += sweep.label
            own = {"member": folder.name, "group": group}
            result = own | json.loads((folder / "result.json").read_text())
            config = json.loads(config_json(saved_config(folder)))
            results.append(Run(folder, group, result, config, [], {}))
            ratios += gradient_ratios_of(folder, group, int(seed))
    table = varied_table({name: results})
    print(table.groupby("group", sort=False)["test_accuracy"].agg(["count", "mean", "std"]))
    table.to_csv(SWEEPS / f"{name}.csv", index=False)
    if ratios:
        columns = ["group", "seed", "epoch", "term", "gradient_ratio", "value"]
        pd.DataFrame(ratios, columns=columns).to_csv(
            SWEEPS / f"{name}_gradient_ratios.csv", index=False
        )


def by_objective(folder: Path) -> tuple[int, str, int]:
    """The place of a member among those of its sweep: objectives in their usual order."""
    group, _, seed = folder.name.rpartition("-seed")
    names, objective = list(PRESETS), group.partition("-")[0]
    return names.index(objective) if objective in names else len(names), group, int(seed)


def gradient_ratios_of(folder: Path, group: str, seed: int) -> list[tuple[Any, ...]]:
    """The gradient ratio and the value of each term, by validated epoch.

    Earlier runs divided by zero where cross-entropy has no gradient; their ratios are left out.
    """
    lines = epochs_of(folder)
    return [
        (group, seed, line["epoch"], term, f"{line[key]:.6g}", f"{line[f'train_{term}']:.6g}")
        for line in lines
        for key in line
        if (term := key.removeprefix(RATIO)) != key and line[key] < 1e6
    ]


if __name__ == "__main__":
    collect(Path(sys.argv[1]), sys.argv[2])
