"""Writes the tables of README and docs from results/: `PYTHONPATH=. python docs/tables.py`.

A table stands between `<!-- NAME -->` and `<!-- end -->`; NAME is one of `TABLES`.
"""

import json
import re
from collections.abc import Callable

import pandas as pd

from docs.bench_tables import BENCH_TABLES
from docs.fault_tables import FAULT_TABLES
from docs.frozen_tables import FROZEN_TABLES
from docs.selectivity_tables import SELECTIVITY_TABLES
from docs.speed_tables import RESULTS, ROOT, SPEED_TABLES, as_table
from docs.start_tables import START_TABLES
from gini_jax.analysis.statistics import (
    compare_by_seed,
    detectable,
    interval,
    markdown,
    number,
    over_common_seeds,
)
from gini_jax.evals import TITLES


def running_sums() -> str:
    """Errors of a batch's terms, with and without running sums."""
    rows = json.loads((RESULTS / "running_sums.json").read_text())["errors"]
    lines = ["| batch | " + " | ".join(_running_heads()) + " |", "| --- " * 7 + "|"]
    for batch in dict.fromkeys(row["batch"] for row in rows):
        own = {row["decay"]: row for row in rows if row["batch"] == batch}
        gini = [f"{own[decay]['gini_error']:.5f}" for decay in (0.0, 0.9, 0.99)]
        kl = [f"{own[decay]['kl_error']:.4f}" for decay in (0.0, 0.9, 0.99)]
        lines.append(f"| {batch} | " + " | ".join([*gini, *kl]) + " |")
    return "\n".join(lines)


def _running_heads() -> list[str]:
    decays = ["decay 0.9", "decay 0.99"]
    return ["Gini: the batch alone", *decays, "KL: the batch alone", *decays]


def sweep(name: str, metrics: tuple[str, ...], endpoint: str = "test_accuracy") -> str:
    """A sweep's means, and its paired comparison of the endpoint."""
    table = pd.read_csv(RESULTS / "sweeps" / f"{name}.csv")
    groups = list(dict.fromkeys(table["group"]))
    lines = ["| | " + " | ".join(f"`{group}`" for group in groups) + " |"]
    lines.append("| --- " * (len(groups) + 1) + "|")
    for metric in metrics:
        if metric not in table or table[metric].isna().all():
            continue
        compared = compare_by_seed(over_common_seeds(table), metric)
        cells = [
            f"{number(compared.loc[group, 'mean'])} ± {number(compared.loc[group, 'sd'])}"
            for group in groups
        ]
        lines.append(f"| {TITLES[metric][0]} | " + " | ".join(cells) + " |")
    first, n = table.iloc[0], table.groupby("group")["seed"].nunique()
    common = over_common_seeds(table)["seed"].nunique()
    unequal = "" if n.min() == n.max() else f", which all columns have, of {n.min()} to {n.max()}"
    note = (
        f"n = {common} seeds{unequal}; {first['epochs']} epochs, {first['device']}, jax "
        f"{first['jax_version']}. {TITLES[endpoint][0]}, paired by seed, over all seeds of both:"
    )
    compared = markdown(compare_by_seed(table, endpoint))
    return "\n".join([*lines, "", note, "", compared, "", _power(table, endpoint)])


def _power(table: pd.DataFrame, endpoint: str) -> str:
    """What a paired t-test can see with these seeds."""
    accuracy = table.pivot(index="seed", columns="group", values=endpoint)
    seen = [
        f"`{group}` {detectable((accuracy[group] - accuracy['ce']).dropna()):.4f}"
        for group in dict.fromkeys(table["group"])
        if group != "ce"
    ]
    return (
        "With these seeds, a power of 80 % needs a true difference of at least: "
        + ", ".join(seen)
        + "."
    )


def settings() -> str:
    """Accuracy, and what the terms did to the features, by the setting that a run changed."""
    table = pd.read_csv(RESULTS / "sweeps" / "caltech101_64_sensitivity.csv")
    shown = ("feature_gini", "feature_kl_uniform", "scatter_ratio")
    heads = [TITLES[metric][0] for metric in ("test_accuracy", *shown)]
    heads[1:1] = ["difference to `ce`", "95 % interval (t)", "better in"]
    lines = ["| changed | n | " + " | ".join(heads) + " |", "| --- " * 9 + "|"]
    compared = {metric: compare_by_seed(table, metric) for metric in ("test_accuracy", *shown)}
    for group, row in compared["test_accuracy"].iterrows():
        name = {"ce": "`ce`", "gini_kl": "nothing"}.get(group)
        name = name or "`" + group.removeprefix("gini_kl-") + "`"
        cells = [f"{row['n']:.0f}", f"{number(row['mean'])} ± {number(row['sd'])}", "-", "-", "-"]
        if group != "ce":
            cells[2] = f"{row['difference']:+.4f}"
            cells[3] = interval(row["t_low"], row["t_high"])
            cells[4] = f"{row['better']:.0f} of {row['pairs']:.0f}"
        cells += [number(compared[metric].loc[group, "mean"]) for metric in shown]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def by_row(name: str) -> str:
    """A sweep of many objectives: a row for each, with its accuracy and what its features are."""
    table = pd.read_csv(RESULTS / "sweeps" / f"{name}.csv")
    shown: tuple[str, ...] = ("test_superclass_accuracy", "feature_gini", "scatter_ratio")
    shown += ("probe_accuracy", "knn_accuracy", "nmi")
    shown = tuple(metric for metric in shown if table[metric].notna().any())
    heads = ["objective", TITLES["test_accuracy"][0], "difference to `ce`", "95 % interval (t)"]
    heads += ["Holm", "better in", *(TITLES[metric][0] for metric in shown)]
    compared, rows = compare_by_seed(table, "test_accuracy"), []
    means = table.groupby("group")[list(shown)].mean()
    for group, row in compared.iterrows():
        cells = [f"`{group}`", f"{number(row['mean'])} ± {number(row['sd'])}", "-", "-", "-", "-"]
        if group != "ce":
            cells[2:4] = [f"{row['difference']:+.4f}", interval(row["t_low"], row["t_high"])]
            cells[4:6] = [number(row["holm_t"], 3), f"{row['better']:.0f} of {row['pairs']:.0f}"]
        rows.append([*cells, *(number(means.loc[group, metric]) for metric in shown)])
    first, n = table.iloc[0], table["seed"].nunique()
    note = (
        f"n = {n} seeds; {first['epochs']} epochs, {first['device']}, jax {first['jax_version']}. "
        f"Holm's correction is over the {len(compared) - 1} objectives of this table."
    )
    return f"{as_table(heads, rows)}\n\n{note}"


def drawn_batches() -> str:
    """The paper's objective against `ce` of the same batches."""
    table = pd.read_csv(RESULTS / "sweeps" / "caltech101_64_batches.csv")
    heads = ["batch", "drawn", "learning rate", "n", "`ce`", "`gini_kl`"]
    heads += ["difference", "95 % interval (t)", "better in"]
    heads += ["Gini impurity, `ce` and `gini_kl`", "scatter, `ce` and `gini_kl`"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    drawn = ["config.batch_size", "config.dataset.sampler", "config.schedule.learning_rate"]
    for settings, own in table.groupby(drawn):
        own = own.assign(group=own["objective"])
        accuracy = compare_by_seed(own, "test_accuracy")
        ce, ours = accuracy.loc["ce"], accuracy.loc["gini_kl"]
        cells = [*map(str, settings), f"{ours['n']:.0f}"]
        cells += [f"{number(row['mean'])} ± {number(row['sd'])}" for row in (ce, ours)]
        cells += [f"{ours['difference']:+.4f}", interval(ours["t_low"], ours["t_high"])]
        cells.append(f"{ours['better']:.0f} of {ours['pairs']:.0f}")
        for metric in ("feature_gini", "scatter_ratio"):
            means = own.groupby("group")[metric].mean()
            cells.append(f"{number(means['ce'])}, {number(means['gini_kl'])}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def batches() -> str:
    """Estimated cycles per image and memory by batch, from a plan of several batches."""
    plan = json.loads((RESULTS / "plans" / "resnet50_224_v5e_batches.json").read_text())
    lines = ["| images per chip | fits | temporaries, MiB | estimated cycles per image |"]
    lines.append("| --- " * 4 + "|")
    for row in plan["batches"]:
        total = sum(sum(both.values()) for both in row.get("estimated_cycles", {}).values())
        cells = [f"{row['batch_per_device']:,}", "yes" if row["fits"] else "no", "-", "-"]
        if row["fits"]:
            cells[2] = f"{row['temporary_bytes'] / 2**20:,.0f}"
            cells[3] = f"{total / row['batch_per_device']:,.0f}"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gradient_ratios() -> str:
    """Each term's gradient relative to cross-entropy's, over the training."""
    lines = ["| data | objective | term | first epoch written with the terms | halfway | last |"]
    lines.append("| --- " * 6 + "|")
    for name, start in STARTS.items():
        table = pd.read_csv(RESULTS / "sweeps" / f"{name}_gradient_ratios.csv")
        for (objective, term), own in table.groupby(["group", "term"], sort=False):
            by_epoch = own.groupby("epoch")["gradient_ratio"].median()
            last = by_epoch.index.max()
            half = min(by_epoch.index, key=lambda epoch, last=last: abs(epoch - last / 2))
            cells = [f"{epoch}: {by_epoch[epoch]:.2%}" for epoch in (start, half, last)]
            lines.append(f"| {name} | `{objective}` | {term} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gpu_trials() -> str:
    """The trials that tune each arm at full width."""
    rows = [row for row in json.loads((RESULTS / "gpu.json").read_text())["seeds"] if row["trial"]]
    heads = ["arm", "weight decay", "learning rate", "validation accuracy", "test accuracy"]
    heads += ["Gini impurity", "scatter"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for row in sorted(rows, key=lambda row: row["arm"]):
        settings, result = row["settings"], row["result"]
        cells = [row["arm"], f"{settings['optimizer.weight_decay']:g}"]
        cells.append(f"{settings.get('schedule.learning_rate', 0.1):g}")
        keys = ("val_accuracy", "test_accuracy", "feature_gini", "scatter_ratio")
        cells += [number(result[key]) for key in keys]
        lines.append("| " + " | ".join(cells) + " |")
    first = rows[0]["result"]
    note = (
        f"One seed each, {first['epochs']} epochs, {first['device']}, jax {first['jax_version']}."
    )
    return "\n".join([*lines, "", note])


CLAIMS = (
    ("Digits, 10 classes", "digits", "gini_kl"),
    (
        "Caltech-101 at 64 pixels, 102 classes, ResNet-18 of width 16",
        "caltech101_64",
        "gini_kl",
    ),
    ("Caltech-101, ResNet-18, held gradient ratios", "caltech101_64_held", "gini_kl, 3 %"),
    ("Caltech-101, ResNet-17", "caltech101_64_resnet17", "gini_kl"),
    ("CIFAR-100, 100 classes, ResNet-18 of width 64, 50 epochs", "cifar100_h200", "gini_kl"),
    ("CIFAR-100, ResNet-18 of width 8, 15 epochs", "cifar100", "gini_kl"),
    ("Caltech-101 at 32 pixels, CvT-13, 20 epochs", "caltech101_32_cvt13", "gini_kl"),
)


def claim() -> str:
    """What the sweeps say about the paper's objective, a sentence each."""
    return "\n".join(f"- {where}, {_claim_of(name, group)}" for where, name, group in CLAIMS)


def stand() -> str:
    """What the paper's objective changed, in the README's two sentences."""
    sentences = []
    for where, name in (("the digits", "digits"), ("CIFAR-100 at full width", "cifar100_h200")):
        table = pd.read_csv(RESULTS / "sweeps" / f"{name}.csv")
        table = table[table["seed"].isin(table.loc[table["group"] == "gini_kl", "seed"])]
        accuracy, gini = (
            compare_by_seed(table, "test_accuracy"),
            compare_by_seed(table, "feature_gini"),
        )
        scatter, ours = compare_by_seed(table, "scatter_ratio"), accuracy.loc["gini_kl"]
        sentences.append(
            f"- On {where} ({ours['n']:.0f} seeds) the features' mean Gini impurity is "
            f"{gini.loc['gini_kl', 'mean']:.3f}, with cross-entropy alone "
            f"{gini.loc['ce', 'mean']:.3f}; between- over within-class scatter is "
            f"{scatter.loc['gini_kl', 'mean']:.2f}, with cross-entropy "
            f"{scatter.loc['ce', 'mean']:.2f}. "
            f"Test accuracy changed by {100 * ours['difference']:+.2f} points, 95 % interval "
            f"{100 * ours['t_low']:+.2f} to {100 * ours['t_high']:+.2f}."
        )
    return "\n".join(sentences)


def _claim_of(name: str, group: str) -> str:
    table = pd.read_csv(RESULTS / "sweeps" / f"{name}.csv")
    table = table[table["seed"].isin(table.loc[table["group"] == group, "seed"])]
    accuracy, gini = compare_by_seed(table, "test_accuracy"), compare_by_seed(table, "feature_gini")
    ce, ours = accuracy.loc["ce"], accuracy.loc[group]
    return (
        f"{ours['n']:.0f} seeds: `{group}` {ours['mean']:.4f} ± {ours['sd']:.4f}, `ce` "
        f"{ce['mean']:.4f} ± {ce['sd']:.4f}; paired difference {ours['difference']:+.4f}, 95 % "
        f"interval {ours['t_low']:+.4f} to {ours['t_high']:+.4f}; Gini impurity "
        f"{gini.loc[group, 'mean']:.4f}, with `ce` {gini.loc['ce', 'mean']:.4f}."
    )


# The first epoch with the terms whose ratios were written, by sweep.
STARTS = {
    "digits": 5,
    "caltech101_64": 6,
    "caltech101_64_resnet17": 6,
    "cifar100": 3,
    "cifar100_h200": 5,
}
SHOWN = (
    "test_accuracy",
    "test_class_accuracy",
    "test_top5",
    "test_superclass_accuracy",
    "test_loss",
    "test_ece",
    "feature_gini",
    "feature_kl_uniform",
    "probe_accuracy",
    "knn_accuracy",
    "nmi",
    "scatter_ratio",
)
TABLES: dict[str, Callable[[], str]] = {
    **SPEED_TABLES,
    **START_TABLES,
    **FROZEN_TABLES,
    **SELECTIVITY_TABLES,
    **BENCH_TABLES,
    **FAULT_TABLES,
    "batches": batches,
    "claim": claim,
    "stand": stand,
    "gradient_ratios": gradient_ratios,
    "running_sums": running_sums,
    "digits": lambda: sweep("digits", SHOWN),
    "caltech101_64": lambda: sweep("caltech101_64", SHOWN),
    "cifar100": lambda: sweep("cifar100", SHOWN),
    "cifar100_h200": lambda: sweep("cifar100_h200", SHOWN),
    "caltech101_32_cvt13": lambda: sweep("caltech101_32_cvt13", SHOWN),
    "digits_baselines": lambda: by_row("digits_baselines"),
    "cifar100_hierarchy": lambda: by_row("cifar100_hierarchy"),
    "settings": settings,
    "gpu_trials": gpu_trials,
    "drawn_batches": drawn_batches,
    "held": lambda: sweep("caltech101_64_held", SHOWN),
    "finetune_seeds": lambda: sweep("finetune", SHOWN, "test_class_accuracy"),
    "caltech101_64_resnet17": lambda: sweep("caltech101_64_resnet17", SHOWN),
}


def main() -> None:
    """Fills the tables of every page."""
    for page in (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text()

        def fill(match: re.Match[str]) -> str:
            name = match.group(1)
            return f"<!-- {name} -->\n{TABLES[name]()}\n<!-- end -->"

        page.write_text(re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.S))


if __name__ == "__main__":
    main()
