"""The tables of speed, from the files that benchmarks/ writes to results/; see `tables.py`."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
# Kinds of operation that are convolutions or products; while loops are those over chunks.
PRODUCTS = (
    "conv_general_dilated",
    "convolution",
    "convolution-base-dilated",
    "dot_general",
    "while",
)


def as_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as a table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "| --- " * len(heads) + "|", *lines[1:]])


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
    """Images per second of a training step or of an evaluation pass, by kind of processor."""
    kinds = json.loads((RESULTS / f"{name}.json").read_text())
    heads = [f"{way}, time ratio" for way in ways]
    heads += ["share of peak"] * (name == "train_step")
    rows, notes = [], []
    for kind, report in sorted(kinds.items()):
        for case_name, case in report["cases"].items():
            rate = case["gini_jax"]["images_per_second"][1]
            setting = f"`{case_name}`, {case['batch']}, {case['image_size']}"
            cells = [_with_quartiles(case, way) for way in ways]
            if "share_of_peak" in case:
                cells.append(f"{case['share_of_peak']:.0%}")
            rows.append([kind, setting, f"{rate:.0f}", *cells])
        rounds = next(iter(report["cases"].values()))["rounds"]
        notes.append(
            f"{kind}: {report['device']}, {report['cores']} cores, jax {report['jax']}, torch "
            f"{report['torch']}, {rounds} alternating rounds"
        )
    table = as_table(
        ["processor", "network, batch, image size", "gini_jax, images/s", *heads], rows
    )
    peak = "The peak is the rate of a large float32 product. " * (name == "train_step")
    return f"{table}\n\nMedians and quartiles. {peak}{'; '.join(notes)}."


def _with_quartiles(case: dict[str, Any], way: str) -> str:
    """The time of a way over that of gini_jax; a dash if it was not measured."""
    if way not in case:
        return "-"
    low, middle, high = case[way]["their_time_over_ours"]
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


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


def baselines() -> str:
    """Time of the other losses against pytorch-metric-learning."""
    report = json.loads((RESULTS / "baselines.json").read_text())
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


def own_images() -> str:
    """A head on a frozen network, and fine-tuning, on the same images."""
    report = json.loads((RESULTS / "own_images.json").read_text())
    rows = []
    for case in report["cases"]:
        for recipe in ("probe", "finetune"):
            own = case[recipe]
            accuracy, (first, *rest) = own["accuracy"], own["seconds"]
            spread = f"{statistics.mean(accuracy):.3f} ({min(accuracy):.3f} to {max(accuracy):.3f})"
            again = ", ".join(f"{seconds:.0f} s" for seconds in rest)
            rows.append([str(case["each"]), f"`{recipe}`", spread, f"{first:.0f} s", again])
    rate = report["cases"][-1]["predict_rate"]
    note = (
        f"{report['classes']} classes of Caltech-101, {report['test_images_of_a_class']} images of "
        f"each to test; {len(report['cases'][0]['probe']['accuracy'])} seeds, mean and range; "
        f"{report['cores']} cores; from the start of the command to its end "
        f"(`benchmarks/own_images.py`). Then {rate:.0f} images/s are classified, the start "
        "included."
    )
    heads = ["images of a class", "config", "test accuracy", "first time", "other seeds"]
    return "\n".join([as_table(heads, rows), "", note])


def heads() -> str:
    """Time of HeadClassifier beside MLPClassifier, and of many seeds at once."""
    report = json.loads((RESULTS / "heads.json").read_text())
    rounds, (n, width, classes) = report["rounds"], report["features"]
    titles = {
        "ce": '`HeadClassifier("ce")`',
        "supcon": '`HeadClassifier("supcon")`',
        "mlp": "`MLPClassifier`",
        "at once": '`HeadClassifier("ce", n_seeds=20)`',
        "in turn": '20 times `HeadClassifier("ce")`',
    }

    def ratio(way: str, base: str) -> str:
        found = sorted(one[way]["seconds"] / one[base]["seconds"] for one in rounds)
        return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"

    rows = []
    for way, title in titles.items():
        seconds = statistics.median(one[way]["seconds"] for one in rounds)
        epochs, accuracy = report["epochs"][way], rounds[0][way]["accuracy"]
        rows.append([title, str(epochs), f"{accuracy:.4f}", f"{seconds:.1f} s", ratio(way, "mlp")])
    note = (
        f"{n:,} embeddings of {width:,} numbers, {classes} classes; {len(rounds)} alternating "
        f"rounds, each measurement a process of its own, with compilation; {report['cores']} "
        f"cores, jax {report['jax']}. The layers, batches and optimisers are the same. Each trains "
        "for the fewest epochs (5, 10, ... 100) after which it is as accurate on the test split as "
        f"MLPClassifier with its defaults, {report['wanted_accuracy']:.4f}, or else for those of "
        "its best accuracy (`benchmarks/heads.py`). A second fit of the same shapes compiles "
        f"nothing. 20 seeds at once take {ratio('at once', 'in turn')} of the time of 20 fits. "
        "Each batch was drawn anew in these runs; since then an epoch holds each example once."
    )
    columns = ["", "epochs", "test accuracy", "time", "time, of MLPClassifier's"]
    return "\n".join([as_table(columns, rows), "", note])


def predict() -> str:
    """Images per second of prediction, of the network alone and of decoding alone."""
    report = json.loads((RESULTS / "predict.json").read_text())
    ways = ("network", "decoding in threads", "decoding in processes", "predict")
    rows = []
    for name, case in report["cases"].items():
        rates = ["{1:.0f} ({0:.0f} to {2:.0f})".format(*case[way]) for way in ways]
        rows.append([f"`{name}`, {case['image_size']}", f"{case['files']:,}", *rates])
    note = (
        f"Images/s; {report['cores']} CPU cores, jax {report['jax']}; medians and quartiles of "
        "alternating rounds. The processes run already; `--mode=predict`, in threads, includes "
        "loading the network."
    )
    heads = ["network, image size", "files", *ways[:-1], "`--mode=predict`"]
    return "\n".join([as_table(heads, rows), "", note])


def executors() -> str:
    """Time of a sweep with its members side by side."""
    report = json.loads((RESULTS / "executors.json").read_text())
    rounds = len(report["seconds"]["local"])
    return (
        f"{report['members']} members of the digits, 20 epochs each, on {report['cores']} cores: "
        f"one after the other took {report['inline_over_local']:.2f} times as long as "
        f"{report['parallel']} at a time ({report['lowest']:.2f} to {report['highest']:.2f}, "
        f"{rounds} alternating rounds, `benchmarks/executors.py`)."
    )


def loss_scale() -> str:
    """Memory and time of losses over pairs in large batches."""
    report = json.loads((RESULTS / "loss_scale.json").read_text())
    found = report["scale"]
    base = [value["seconds"] / 4096**2 for value in found["direct"]["4096"]]
    sizes = list(found["chunks"])
    rows = []
    for way, by_size in found.items():
        cells = []
        for size in sizes:
            values = [value for value in by_size.get(size, [None]) if value]
            if not values:
                cells.append("-")
                continue
            mebibytes = statistics.median(value["bytes"] for value in values) / 2**20
            pairs = int(size) ** 2
            ratios = sorted(v["seconds"] / pairs / b for v, b in zip(values, base, strict=True))
            low, middle, high = ratios[0], statistics.median(ratios), ratios[-1]
            cells.append(f"{mebibytes:,.0f} MiB, {middle:.2f} ({low:.2f} to {high:.2f})")
        rows.append([way, *cells])
    note = (
        "Largest memory, and time for a pair relative to `direct` at N = 4,096: medians and ranges "
        f"of {len(base)} alternating rounds; {report['cores']} CPU cores, jax {report['jax']}, "
        "pytorch-metric-learning 2.9.0, optax 0.2.8."
    )
    return "\n".join([as_table(["", *(f"N={int(n):,}" for n in sizes)], rows), "", note])


def simclr_step() -> str:
    """Memory and time of a step of SimCLR in micro-batches."""
    step = json.loads((RESULTS / "loss_scale.json").read_text())["step"]
    whole, part = (step["bytes"][k] / 2**20 for k in ("simclr", "simclr, one micro-batch"))
    ratios = sorted(step["ratios"])
    middle = statistics.median(ratios)
    return (
        f"{step['images']:,} images, two views of each, in 16 micro-batches need {whole:,.0f} MiB "
        f"of temporaries; a batch of one micro-batch needs {part:,.0f} MiB. With "
        f"{step['timed_images']:,} images the step takes "
        f"{middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, {len(ratios)} alternating rounds) "
        f"times as long as one of the paper's terms of {2 * step['timed_images']:,} images in 16 "
        "micro-batches, which makes the same passes through the network."
    )


SPEED_TABLES: dict[str, Callable[[], str]] = {
    "own_images": own_images,
    "heads": heads,
    "losses": losses,
    "train_step": lambda: against_torch(
        "train_step", "gini_jax, XLA's convolutions", "torch eager", "torch.compile"
    ),
    "step_profile": step_profile,
    "steps_per_call": steps_per_call,
    "baselines": baselines,
    "predict": predict,
    "executors": executors,
    "evaluation": lambda: against_torch("evaluation", "torch eager"),
    "storage": storage,
    "input": feeds,
    "loss_scale": loss_scale,
    "simclr_step": simclr_step,
    "gpu_speed": gpu_speed,
}
