"""Pictures of one run: training curves, the features' impurity, and augmented images."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gini_jax.analysis.runs import epochs_of
from gini_jax.drawing import plain_numbers
from gini_jax.storage import write

RATIO = "train_gradient_ratio_"  # of a term's gradient to cross-entropy's


def draw_curves(workdir: Path, png: Path) -> None:
    """Draws loss, accuracy and the terms by epoch, and the terms' gradients if they are known.

    Args:
        workdir: of a run, with its config.json and metrics.jsonl.
        png: the picture to write.
    """
    config = json.loads((workdir / "config.json").read_text())
    lines = epochs_of(workdir)
    epochs = [line["epoch"] for line in lines]
    panels = {
        "Cross-entropy": ["train_ce", "val_loss"],
        "Accuracy": ["train_accuracy", "val_accuracy"],
        "Gini impurity of the features": ["train_gini", "val_gini"],
        "KL of the features' distribution from the classes'": ["train_kl", "val_kl"],
    }
    panels |= {f"Term {name}": [f"train_{name}"] for name in other_terms(config)}
    if ratios := sorted({key for line in lines for key in line if key.startswith(RATIO)}):
        panels["Gradient of a term / of cross-entropy"] = ratios
        panels["Share of features that never fire"] = ["val_dead"]
    known_keys = {key for line in lines for key in line if line[key] is not None}
    panels = {title: names for title, names in panels.items() if known_keys & {*names}}
    columns = -(-len(panels) // 2)
    figure = Figure(figsize=(5 * columns, 6.5), layout="constrained")
    figure.suptitle(f"{config['name']}:{config['objective']}, seed {config['seed']}")
    axes = figure.subplots(2, columns, sharex=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=False):
        for name in names:
            known = [(line["epoch"], line[name]) for line in lines if line.get(name) is not None]
            if known:
                label = "training batches" if name.startswith("train") else "validation split"
                if name.startswith(RATIO):
                    label = name.removeprefix(RATIO)
                    if any(value > 0 for _, value in known):
                        axis.set_yscale("log")
                        plain_numbers(axis.yaxis)
                marker = "." if len(known) < 10 else None
                axis.plot(*zip(*known, strict=True), label=label, marker=marker)
        start = config["loss"]["start_epoch"]
        if config["loss"]["terms"] and 1 < start <= epochs[-1]:
            axis.axvline(start, color="0.5", linestyle=":", label=f"terms on from epoch {start}")
        if "val_dead" in names:
            axis.set_ylim(0, max(0.05, *axis.get_ylim()))
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axis.lines:
            axis.legend()
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    figure.supxlabel(
        "Training terms are means over batches, validation terms are of the whole split; with few "
        "examples per class in a batch, the two differ.",
        fontsize=8,
    )
    save(figure, png)


def other_terms(config: Mapping[str, Any]) -> list[str]:
    """The terms of a run that have no panel of their own in the curves.

    Examples:
        >>> other_terms({"loss": {"terms": {"renyi": 0.1, "kl": 0.5}}})
        ['renyi']
    """
    return [name for name in config["loss"]["terms"] if name not in ("gini", "kl")]


def draw_impurity(arrays: Mapping[str, np.ndarray], title: str, png: Path) -> None:
    """Draws the histogram of the features' Gini impurity before and after training.

    Args:
        arrays: by layer, `impurity/LAYER` and `untrained_impurity/LAYER`, each `[C]`.
        title: what the picture is of.
        png: the picture to write.
    """
    layers = [key.partition("/")[2] for key in arrays if key.startswith("impurity/")]
    figure = Figure(figsize=(7 * len(layers), 4), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, len(layers), squeeze=False)
    for axis, layer in zip(axes[0], layers, strict=True):
        after = arrays[f"impurity/{layer}"]
        before = arrays.get(f"untrained_impurity/{layer}", after)
        flat = 1 - 1 / arrays[f"profile/{layer}"].shape[1]
        bins = np.linspace(min(before.min(), after.min(), 0.95), 1.0, 41)
        for name, values in (("untrained", before), ("trained", after)):
            label = f"{name}, mean {values.mean():.3f}"
            axis.hist(values, bins=bins, alpha=0.6, label=label)
        axis.axvline(flat, color="0.3", linestyle=":", label="fires equally for all: 1 - 1/K")
        axis.set_title(f"{layer}: {len(after)} features on the test split")
        axis.set_xlabel("Gini impurity (0: fires for one class)")
        axis.set_ylabel("features")
        axis.legend()
    save(figure, png)


def draw_preview(rows: list[dict[str, Any]], title: str, png: Path) -> None:
    """Draws a contact sheet: one image per row, raw and then as a step may see it.

    Args:
        rows: `name`, `raw [H, W, 3]`, `draws [D, h, w, 3]` in `[0, 1]`, and a `label` for each.
        title: above the sheet.
        png: the picture to write.
    """
    columns = 1 + len(rows[0]["draws"])
    figure = Figure(figsize=(1.55 * columns, 1.75 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns)
    for line, row in zip(axes, rows, strict=True):
        images = [row["raw"], *row["draws"]]
        for axis, image, label in zip(line, images, [row["name"], *row["labels"]], strict=True):
            axis.imshow(image, interpolation="nearest", vmin=0, vmax=1)
            axis.set_title(label, fontsize=7, fontweight="bold" if axis is line[0] else "normal")
            axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    save(figure, png)


def save(figure: Figure, png: Path) -> None:
    """Writes a figure as a PNG."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    write(png, data.getvalue())
