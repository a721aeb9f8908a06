"""What people look at after a run: training curves, features' impurity, a short summary."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def draw_curves(metrics_path: Path, png: Path) -> None:
    """Draws loss, accuracy and the terms by epoch.

    Args:
        metrics_path: a run's metrics.jsonl.
        png: the picture to write.
    """
    lines = [json.loads(line) for line in metrics_path.read_text().splitlines()]
    epochs = [line["epoch"] for line in lines]
    panels = {
        "Cross-entropy": ["train_ce", "val_loss"],
        "Accuracy": ["train_accuracy", "val_accuracy"],
        "Gini impurity of the features": ["train_gini", "val_gini"],
        "KL of features' from classes' distribution": ["train_kl", "val_kl"],
    }
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=True):
        for name in names:
            values = [line.get(name) for line in lines]
            if any(value is not None for value in values):
                label = "training batches" if name.startswith("train") else "validation split"
                axis.plot(epochs, values, label=label, marker="." if len(epochs) < 10 else None)
        axis.set_title(title)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    figure.savefig(png, dpi=120)


def draw_impurity(before: dict[str, np.ndarray], after: dict[str, np.ndarray], png: Path) -> None:
    """Draws the histogram of the features' Gini impurity before and after training.

    Args:
        before: by layer `[C]`, of the untrained network on the test split.
        after: likewise, of the tested one.
        png: the picture to write.
    """
    figure = Figure(figsize=(7 * len(after), 4), layout="constrained")
    axes = figure.subplots(1, len(after), squeeze=False)
    for axis, layer in zip(axes[0], after, strict=True):
        low = min(before[layer].min(), after[layer].min())
        bins = np.linspace(min(low, 0.95), 1.0, 41)
        for name, values in (("untrained", before[layer]), ("trained", after[layer])):
            label = f"{name}, mean {values.mean():.3f}"
            axis.hist(values, bins=bins, alpha=0.6, label=label)
        axis.set_title(f"{layer}: {len(after[layer])} features on the test split")
        axis.set_xlabel("Gini impurity (0: fires for one class; towards 1: for all alike)")
        axis.set_ylabel("features")
        axis.legend()
    figure.savefig(png, dpi=120)


def draw_preview(rows: list[dict[str, Any]], title: str, png: Path) -> None:
    """Draws a contact sheet: an image a row, raw and then as a step may see it.

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
    figure.savefig(png, dpi=120)


def summary_text(result: dict[str, Any], workdir: Path) -> str:
    """The end of a run in a few lines.

    Args:
        result: what result.json holds.
        workdir: the run's folder.
    """
    val = result["val_accuracy"]
    chosen = "the last"
    if val is not None:
        chosen = f"best of {result['epochs']} by validation accuracy {val:.4f}"
    return "\n".join(
        [
            "",
            f"{result['config_name']}:{result['objective']}, seed {result['seed']}",
            f"  tested           epoch {result['best_epoch']}, {chosen}",
            f"  test accuracy    {result['test_accuracy']:.4f}   top-5 {result['test_top5']:.4f}",
            f"  test loss        {result['test_loss']:.4f}",
            f"  features' Gini   {result['feature_gini']:.4f}   KL {result['feature_kl']:.4f}",
            f"  training time    {result['train_seconds']:.0f} s, "
            f"{result['images_per_second']:,.0f} images/s on {result['device']}",
            f"  look at          {workdir}/curves.png, {workdir}/impurity.png",
        ]
    )
