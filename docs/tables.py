"""Writes the tables of README and docs from results/: `PYTHONPATH=. python docs/tables.py`.

A table stands between `<!-- NAME -->` and `<!-- end -->`; NAME is one of `TABLES`.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from gini_jax.analysis.statistics import (
    METRICS,
    compare,
    detectable,
    interval,
    markdown,
    number,
    over_common_seeds,
)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"


def losses() -> str:
    """Time of the losses against PyTorch."""
    report = json.loads((RESULTS / "losses.json").read_text())
    lines = [
        "| activations | PyTorch | gini_jax | PyTorch / gini_jax | share of copy bandwidth |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, kinds in report["cases"].items():
        shape, _, classes = name.partition(" K=")
        ours = kinds["float32, integers"]
        lines.append(
            f"| `{shape}`, K = {classes} | {kinds['torch eager']['milliseconds']:.1f} ms | "
            f"{ours['milliseconds']:.1f} ms | {ours['torch_over_this']:.1f} | "
            f"{ours['share_of_copy_bandwidth']:.0%} |"
        )
    return "\n".join(lines)


def against_torch(name: str, *ways: str) -> str:
    """Images per second of a training step or of an evaluation pass against PyTorch."""
    report = json.loads((RESULTS / f"{name}.json").read_text())
    heads = [f"{way}, time ratio" for way in ways]
    lines = [
        "| network, batch, image size | gini_jax, images/s | " + " | ".join(heads) + " |",
        "| --- " * (len(ways) + 2) + "|",
    ]
    for name, case in report["cases"].items():
        rate = case["gini_jax"]["images_per_second"][1]
        cells = [f"`{name}`, {case['batch']}, {case['image_size']}", f"{rate:.0f}"]
        for way in ways:
            if way not in case:
                cells.append("-")
                continue
            low, middle, high = case[way]["their_time_over_ours"]
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    where = f"{report['device']}, {report['cores']} cores, jax {report['jax']}, torch"
    rounds = next(iter(report["cases"].values()))["rounds"]
    note = f"{where} {report['torch']}; medians and quartiles of {rounds} alternating rounds."
    return "\n".join([*lines, "", note])


def step_profile() -> str:
    """Milliseconds of a step on one core, by part and by kind of operation."""
    report = json.loads((RESULTS / "step_profile.json").read_text())
    default, ours = report["with YNN, as jaxlib's default"], report["gini_jax"]
    lines = ["| part | jaxlib's default | gini_jax | share |", "| --- | --- | --- | --- |"]
    total = sum(ours["by_part"].values())
    parts = list(dict.fromkeys(part.rpartition(" ")[0] for part in ours["by_part"]))

    def milliseconds(profile: dict[str, dict[str, float]], part: str) -> float:
        ways = (f"{part} forward", f"{part} backward")
        return sum(profile["by_part"].get(way, 0.0) for way in ways)

    for part in sorted(parts, key=lambda part: -milliseconds(ours, part)):
        before, after = milliseconds(default, part), milliseconds(ours, part)
        lines.append(f"| {part} | {before:.0f} ms | {after:.0f} ms | {after / total:.1%} |")
    products = sum(ours["by_kind"].get(kind, 0.0) for kind in PRODUCTS)
    before, after = default["seconds"], ours["seconds"]
    lines.append(f"| whole step | {before * 1e3:.0f} ms | {after * 1e3:.0f} ms | |")
    return "\n".join(
        [
            *lines,
            "",
            f"`{report['case']}` on one core, jax {report['jax']}; stages include their batch "
            "normalisation where the compiler has fused it with them. Convolutions and products "
            f"take {products / total:.0%} of all.",
        ]
    )


def steps_per_call() -> str:
    """Time and result of several steps per call."""
    report = json.loads((RESULTS / "steps_per_call.json").read_text())
    lines = [
        "| `steps_per_call` | epoch | time ratio | difference of the parameters |",
        "| --- | --- | --- | --- |",
    ]
    for count, case in report["cases"].items():
        low, middle, high = case["ratio"]
        lines.append(
            f"| {count} | {case['seconds']:.2f} s | {middle:.2f} ({low:.2f} to {high:.2f}) | "
            f"{case['difference']:.1e} |"
        )
    note = (
        f"The digits, an epoch of {report['steps']} steps, {report['cores']} CPU cores, jax "
        f"{report['jax']}; medians and quartiles of {report['rounds']} alternating rounds. The "
        "difference is the largest one after the epoch, over the largest parameter."
    )
    return "\n".join([*lines, "", note])


def rivals() -> str:
    """Time of the other losses against pytorch-metric-learning."""
    report = json.loads((RESULTS / "rivals.json").read_text())
    sizes = list(report["cases"])
    heads = [f"{size}, {what}" for size in sizes for what in ("gini_jax", "time ratio")]
    lines = ["| loss | " + " | ".join(heads) + " |", "| --- " * (1 + len(heads)) + "|"]
    for name in report["cases"][sizes[0]]:
        cells = []
        for size in sizes:
            case = report["cases"][size][name]
            ratio = case.get("theirs_over_ours")
            cells += [f"{case['milliseconds']:.2f} ms", f"{ratio:.1f}" if ratio else "-"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    note = (
        f"C = {report['channels']}, K = {report['classes']}; {report['cores']} CPU cores, jax "
        f"{report['jax']}, torch {report['torch']}; medians of {report['rounds']} alternating "
        "rounds. Above 1, gini_jax is faster."
    )
    return "\n".join([*lines, "", note])


def startup() -> str:
    """Seconds from the start of the program to its first step."""
    report = json.loads((RESULTS / "startup.json").read_text())
    parts = ("imports", "data", "step, with tracing and compilation", "all")
    lines = ["| | " + " | ".join(parts) + " |", "| --- " * (len(parts) + 1) + "|"]
    names = {"imports alone": "`import jax, flax, optax`", "first": "first start"}
    for start, name in (names | {"second": "second start"}).items():
        own = report[start]
        cells = [f"{own[part][1]:.2f} s" if part in own else "-" for part in parts]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    low, middle, high = report["second over imports"]
    note = (
        f"{report['cores']} CPU cores, medians of {report['rounds']} alternating rounds; all "
        "includes the remaining set-up, such as the network's initial values. The "
        f"second start takes {middle:.2f} ({low:.2f} to {high:.2f}) times as long as the imports "
        "alone."
    )
    return "\n".join([*lines, "", note])


def storage() -> str:
    """Seconds of a run on a disk, with all loggers, and in a bucket."""
    report = json.loads((RESULTS / "storage.json").read_text())
    lines = [
        "| workdir | training | ratio to the disk | in all |",
        "| --- | --- | --- | --- |",
    ]
    for kind, own in report["kinds"].items():
        low, middle, high = own["training over disk"]
        lines.append(
            f"| {kind} | {own['training'][1]:.2f} s | {middle:.2f} ({low:.2f} to {high:.2f}) | "
            f"{own['in all'][1]:.1f} s |"
        )
    note = (
        f"The digits, {report['epochs']} epochs with a checkpoint each; {report['cores']} CPU "
        f"cores, jax {report['jax']}, a bucket on the same machine; medians and quartiles of "
        f"{report['rounds']} alternating rounds."
    )
    return "\n".join([*lines, "", note])


def feeds() -> str:
    """Images per second of the ways to feed a step."""
    report = json.loads((RESULTS / "input.json").read_text())
    names = {"torch, 0 workers": "torch `DataLoader`, 0 workers"}
    names |= {"torch, 2 workers": "torch `DataLoader`, 2 workers"}
    lines = [
        "| way | images/s alone (quartiles) | share of a training step spent waiting |",
        "| --- | --- | --- |",
    ]
    for way, rate in report["images_per_second_alone"].items():
        share = report["share_of_training_waiting"].get(way)
        waiting = f"{share['median']:.3%}" if share else ""
        quartiles = f"{rate['low_quartile']:,.0f} to {rate['high_quartile']:,.0f}"
        lines.append(
            f"| {names.get(way, f'`{way}`')} | {rate['median']:,.0f} ({quartiles}) | {waiting} |"
        )
    return "\n".join(lines)


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


def sweep(name: str, metrics: tuple[str, ...]) -> str:
    """A sweep's means, and its paired comparison of accuracy."""
    table = pd.read_csv(RESULTS / "sweeps" / f"{name}.csv")
    groups = list(dict.fromkeys(table["group"]))
    lines = ["| | " + " | ".join(f"`{group}`" for group in groups) + " |"]
    lines.append("| --- " * (len(groups) + 1) + "|")
    for metric in metrics:
        if metric not in table or table[metric].isna().all():
            continue
        compared = compare(over_common_seeds(table), metric)
        cells = [
            f"{number(compared.loc[group, 'mean'])} ± {number(compared.loc[group, 'sd'])}"
            for group in groups
        ]
        lines.append(f"| {METRICS[metric][0]} | " + " | ".join(cells) + " |")
    first, n = table.iloc[0], table.groupby("group")["seed"].nunique()
    common = over_common_seeds(table)["seed"].nunique()
    unequal = "" if n.min() == n.max() else f", which all columns have, of {n.min()} to {n.max()}"
    note = (
        f"n = {common} seeds{unequal}; {first['epochs']} epochs, {first['device']}, jax "
        f"{first['jax_version']}. Test accuracy, paired by seed, over all seeds of both:"
    )
    compared = markdown(compare(table, "test_accuracy"))
    return "\n".join([*lines, "", note, "", compared, "", _power(table)])


def _power(table: pd.DataFrame) -> str:
    """What a paired t-test can see with these seeds."""
    accuracy = table.pivot(index="seed", columns="group", values="test_accuracy")
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
    heads = [METRICS[metric][0] for metric in ("test_accuracy", *shown)]
    heads[1:1] = ["difference to `ce`", "95 % interval (t)", "better in"]
    lines = ["| changed | n | " + " | ".join(heads) + " |", "| --- " * 9 + "|"]
    compared = {metric: compare(table, metric) for metric in ("test_accuracy", *shown)}
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
        accuracy = compare(own, "test_accuracy")
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


def shares() -> str:
    """Each term's gradient relative to cross-entropy's, over the training."""
    lines = ["| data | objective | term | first epoch written with the terms | halfway | last |"]
    lines.append("| --- " * 6 + "|")
    for name, start in STARTS.items():
        table = pd.read_csv(RESULTS / "sweeps" / f"{name}_shares.csv")
        for (objective, term), own in table.groupby(["group", "term"], sort=False):
            by_epoch = own.groupby("epoch")["share"].median()
            last = by_epoch.index.max()
            half = min(by_epoch.index, key=lambda epoch, last=last: abs(epoch - last / 2))
            cells = [f"{epoch}: {by_epoch[epoch]:.2%}" for epoch in (start, half, last)]
            lines.append(f"| {name} | `{objective}` | {term} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gpu_speed() -> str:
    """Images per second of a training step on a GPU against PyTorch."""
    rows = json.loads((RESULTS / "gpu.json").read_text())["speed"]
    ways = ("gini_jax", "torch eager", "torch.compile")
    lines = ["| network, batch, image size | " + " | ".join(f"{way}, images/s" for way in ways)]
    lines[0] += " | share of a large product's rate |"
    lines.append("| --- " * 5 + "|")
    for row in rows:
        cells = [f"`{row['case'].rpartition('_')[0]}`, {row['batch']}, {row['image_size']}"]
        for way in ways:
            low, middle, high = row[way]["images_per_second"]
            cells.append(f"{middle:,.0f} ({low:,.0f} to {high:,.0f})")
        cells.append(", ".join(f"{row[way]['share_of_peak']:.0%}" for way in ways))
        lines.append("| " + " | ".join(cells) + " |")
    first = rows[0]
    note = (
        f"{first['device']}, bfloat16, jax {first['jax']}, torch {first['torch']}; medians and "
        f"quartiles of {first['rounds']} alternating rounds of 20 steps. A bfloat16 product of "
        f"8192 x 8192 reaches {first['peak_tflops']:.0f} TFLOP/s."
    )
    return "\n".join([*lines, "", note])


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
    ("Caltech-101, ResNet-18, held shares", "caltech101_64_held", "gini_kl, 3 %"),
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
        accuracy, gini = compare(table, "test_accuracy"), compare(table, "feature_gini")
        scatter, ours = compare(table, "scatter_ratio"), accuracy.loc["gini_kl"]
        sentences.append(
            f"- On {where} ({ours['n']:.0f} seeds) the features' mean Gini impurity is "
            f"{gini.loc['gini_kl', 'mean']:.3f}, with cross-entropy alone "
            f"{gini.loc['ce', 'mean']:.3f}; the scatter between the classes over that within is "
            f"{scatter.loc['gini_kl', 'mean']:.2f}, alone {scatter.loc['ce', 'mean']:.2f}. "
            f"Test accuracy changed by {100 * ours['difference']:+.2f} points, 95 % interval "
            f"{100 * ours['t_low']:+.2f} to {100 * ours['t_high']:+.2f}."
        )
    return "\n".join(sentences)


def _claim_of(name: str, group: str) -> str:
    table = pd.read_csv(RESULTS / "sweeps" / f"{name}.csv")
    table = table[table["seed"].isin(table.loc[table["group"] == group, "seed"])]
    accuracy, gini = compare(table, "test_accuracy"), compare(table, "feature_gini")
    ce, ours = accuracy.loc["ce"], accuracy.loc[group]
    return (
        f"{ours['n']:.0f} seeds: `{group}` {ours['mean']:.4f} ± {ours['sd']:.4f}, `ce` "
        f"{ce['mean']:.4f} ± {ce['sd']:.4f}; paired difference {ours['difference']:+.4f}, 95 % "
        f"interval {ours['t_low']:+.4f} to {ours['t_high']:+.4f}; Gini impurity "
        f"{gini.loc[group, 'mean']:.4f}, with `ce` {gini.loc['ce', 'mean']:.4f}."
    )


# The first epoch with the terms whose shares were written, by sweep.
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
# Kinds of operation that are convolutions or products; while loops are those over chunks.
PRODUCTS = (
    "conv_general_dilated",
    "convolution",
    "convolution-base-dilated",
    "dot_general",
    "while",
)
TABLES: dict[str, Callable[[], str]] = {
    "losses": losses,
    "train_step": lambda: against_torch(
        "train_step", "gini_jax, XLA's convolutions", "torch eager", "torch.compile"
    ),
    "step_profile": step_profile,
    "steps_per_call": steps_per_call,
    "rivals": rivals,
    "evaluation": lambda: against_torch("evaluation", "torch eager"),
    "startup": startup,
    "storage": storage,
    "batches": batches,
    "claim": claim,
    "stand": stand,
    "shares": shares,
    "running_sums": running_sums,
    "input": feeds,
    "digits": lambda: sweep("digits", SHOWN),
    "caltech101_64": lambda: sweep("caltech101_64", SHOWN),
    "cifar100": lambda: sweep("cifar100", SHOWN),
    "cifar100_h200": lambda: sweep("cifar100_h200", SHOWN),
    "caltech101_32_cvt13": lambda: sweep("caltech101_32_cvt13", SHOWN),
    "settings": settings,
    "gpu_speed": gpu_speed,
    "gpu_trials": gpu_trials,
    "drawn_batches": drawn_batches,
    "held": lambda: sweep("caltech101_64_held", SHOWN),
    "caltech101_64_resnet17": lambda: sweep("caltech101_64_resnet17", SHOWN),
}


def main() -> None:
    """Fills the tables of every page."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text()

        def fill(match: re.Match[str]) -> str:
            name = match.group(1)
            return f"<!-- {name} -->\n{TABLES[name]()}\n<!-- end -->"

        page.write_text(re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.S))


if __name__ == "__main__":
    main()
