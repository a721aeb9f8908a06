"""The pictures of a report, as strings for a page; readable on light and dark backgrounds."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gini_jax.analysis.runs import Run
from gini_jax.analysis.tsne import tsne
from gini_jax.drawing import (
    COLOURS,
    as_png,
    by_features_kept,
    mean_and_range,
    plain_numbers,
    try_to_draw,
)


def of_one_run(run: Run) -> dict[str, bytes]:
    """A run's pictures for its loggers, by name; pictures that cannot be drawn are left out."""
    groups, found = {run.group: [run]}, {}

    def keep(name: str, draw: Callable[..., Figure], *arguments: Any) -> None:
        found[name] = as_png(draw, *arguments)

    try_to_draw("impurity", keep, "impurity", impurity, groups)
    try_to_draw("profiles", keep, "profiles", profiles, groups)
    of_test = run.arrays["confusion"], run.class_names
    try_to_draw("confusion", keep, "confusion", confusion, *of_test)
    return found


def curves(groups: dict[str, list[Run]]) -> Figure:
    """Mean over the seeds by epoch, with a band from the lowest to the highest.

    A single group gets more lines and panels: the terms in training batches, the ratios of their
    gradients to cross-entropy's, and the share of features that never fire.
    """
    terms = dict.fromkeys(
        name for runs in groups.values() for run in runs for name in run.config["loss"]["terms"]
    )
    others = [name for name in terms if name not in ("gini", "kl")]
    alone = len(groups) == 1 or None
    panels: list[tuple[str, str | None, str | None]] = [
        ("Cross-entropy", "train_ce", "val_loss"),
        ("Accuracy", "train_accuracy", "val_accuracy"),
        ("Gini impurity of the features", alone and "train_gini", "val_gini"),
        ("KL of the features' distribution", alone and "train_kl", "val_kl"),
        *((f"Term {name}, in training batches", f"train_{name}", None) for name in others),
    ]
    if alone:
        title = "Gradient of {} / of cross-entropy"
        panels += [(title.format(name), f"train_gradient_ratio_{name}", None) for name in terms]
        panels += [("Share of features that never fire", None, "val_dead")]
    known = {key for runs in groups.values() for run in runs for line in run.lines for key in line}
    panels = [panel for panel in panels if known & {*panel[1:]}]
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(10, 3.1 * rows + 0.2 * -(-len(groups) // 4)), layout="constrained")
    axes = figure.subplots(rows, 2, sharex=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, training, validation) in zip(axes.flat, panels, strict=False):
        for colour, (name, runs) in zip(cycle(COLOURS), groups.items(), strict=False):
            validated = any(validation in line for run in runs for line in run.lines)
            for key, style in ((training, ":"), (validation, "-")):
                label = name if (style == "-") == validated else None
                _band(axis, runs, key, label, colour, style)
        positive = any((line.get_ydata() > 0).any() for line in axis.lines)
        if title.startswith("Gradient") and positive:
            axis.set_yscale("log")
            plain_numbers(axis.yaxis)
        if validation == "val_dead":
            axis.set_ylim(0, max(0.05, axis.get_ylim()[1]))
        _mark(axis, groups)
        axis.set_title(title)
        axis.grid(alpha=0.25)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("epoch")
    _legend_below(figure, figure.axes[0])
    lines = "Solid: the validation split. Dotted: means over training batches."
    figure.supxlabel(lines, fontsize=8)
    return figure


def _legend_below(figure: Figure, axis: Any) -> None:
    """Draws an axis's legend below all axes, where it covers no line."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)


def _band(
    axis: Any, runs: list[Run], key: str | None, label: str | None, colour: str, style: str
) -> None:
    if key is None:
        return
    lines = [{x["epoch"]: x[key] for x in run.lines if x.get(key) is not None} for run in runs]
    epochs = sorted(set.intersection(*map(set, lines)))
    if not epochs:
        return
    values = np.array([[line[epoch] for epoch in epochs] for line in lines])
    mean_and_range(axis, epochs, values, colour, label, style)


def _mark(axis: Any, groups: dict[str, list[Run]]) -> None:
    """Where the terms start, and the epochs that were tested."""
    for colour, runs in zip(cycle(COLOURS), groups.values(), strict=False):
        for run in (run for run in runs if run.result):  # of a finished run
            axis.axvline(run.result["best_epoch"], color=colour, lw=0.6, alpha=0.5, ymax=0.04)
        start = runs[0].config["loss"]["start_epoch"]
        if runs[0].config["loss"]["terms"] and start > 1:
            axis.axvline(start, color="#7d8590", lw=0.8, ls="--")


def impurity(groups: dict[str, list[Run]]) -> Figure:
    """Histogram of the features' impurity on the test split, all seeds together."""
    values = {
        name: np.concatenate([run.arrays[f"impurity/{run.layer}"] for run in runs])
        for name, runs in groups.items()
    }
    return histograms({"": values}, {run.num_classes for runs in groups.values() for run in runs})


def before_and_after(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Histogram of the features' impurity before and after training, a panel for each layer.

    Args:
        arrays: by layer, `impurity/LAYER [C]`, `profile/LAYER [C, K]` and, if the untrained network
            was measured, `untrained_impurity/LAYER [C]`.
    """
    panels, classes = {}, set()
    for layer in [key.partition("/")[2] for key in arrays if key.startswith("impurity/")]:
        after = arrays[f"impurity/{layer}"]
        before = arrays.get(f"untrained_impurity/{layer}", after)
        panels[f"{layer}: {len(after)} features"] = {"untrained": before, "trained": after}
        classes.add(arrays[f"profile/{layer}"].shape[1])
    return histograms(panels, classes)


def histograms(panels: Mapping[str, Mapping[str, np.ndarray]], classes: set[int]) -> Figure:
    """Histograms of impurity, by panel and by label; `classes` are the numbers `K` of the runs."""
    lines = max(map(len, panels.values()))
    size = (max(10, 7 * len(panels)), 3.6 + 0.2 * -(-lines // 4))
    figure = Figure(figsize=size, layout="constrained")
    for axis, (title, values) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        bins = np.linspace(min(0.95, *(v.min() for v in values.values())), 1.0, 41)
        for colour, (name, v) in zip(cycle(COLOURS), values.items(), strict=False):
            label, weights = f"{name}, mean {v.mean():.3f}", np.full(len(v), 1 / len(v))
            style: Any = {"histtype": "step", "color": colour, "lw": 1.5}
            axis.hist(v, list(bins), weights=weights, label=label, **style)
        for flat in (1 - 1 / k for k in classes):
            axis.axvline(flat, color="#7d8590", ls="--", lw=1)
            axis.text(flat, axis.get_ylim()[1], "1 - 1/K ", ha="right", va="top", fontsize=8)
        axis.set_title(title)
        axis.set_xlabel("Gini impurity (0: the feature fires for one class)")
        axis.set_ylabel("share of the features")
        axis.legend(loc="upper left", fontsize=8)
    return figure


def preview(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """A contact sheet: one image per row, raw and then as a step may see it.

    Args:
        rows: `name`, `raw [H, W, 3]`, `draws [D, h, w, 3]` in `[0, 1]`, and a label for each in
            `labels`.
        title: above the sheet.
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
    return figure


def profiles(groups: dict[str, list[Run]]) -> Figure:
    """Class-by-feature heat maps; features sorted by their main class."""
    figure, axes = _one_each(groups, height=3.6)
    largest = max(runs[0].arrays[f"profile/{runs[0].layer}"].max() for runs in groups.values())
    for axis, (name, runs) in zip(axes, groups.items(), strict=True):
        profile = runs[0].arrays[f"profile/{runs[0].layer}"]
        order = np.lexsort((-profile.max(axis=1), profile.argmax(axis=1)))
        image = axis.imshow(
            profile[order].T,
            aspect="auto",
            vmin=0,
            vmax=largest,
            cmap="viridis",
            interpolation="none",
        )
        axis.set_title(f"{name}, seed {runs[0].result['seed']}", fontsize=8)
        axis.set_xlabel("feature, sorted")
        if runs[0].num_classes <= 20:
            axis.set_yticks(range(runs[0].num_classes), runs[0].class_names, fontsize=7)
        else:
            axis.set_ylabel("class")
    figure.colorbar(image, ax=axes, label="share in the profile")
    return figure


def distribution(groups: dict[str, list[Run]]) -> Figure:
    """The features' distribution over the classes, and that of the test images."""
    figure = Figure(figsize=(10, 3.4 + 0.2 * -(-len(groups) // 4)), layout="constrained")
    axis = figure.subplots()
    first = max((runs[0] for runs in groups.values()), key=lambda run: run.num_classes)
    classes = np.arange(first.num_classes)
    own = first.arrays["confusion"].sum(axis=1) / first.arrays["confusion"].sum()
    axis.bar(classes, own, color="#7d8590", alpha=0.35, label="test split", width=0.9)
    for colour, (name, runs) in zip(cycle(COLOURS), groups.items(), strict=False):
        by_class = runs[0].arrays[f"profile/{runs[0].layer}"].sum(axis=0)
        share = by_class / max(by_class.sum(), 1e-30)
        axis.plot(classes[: len(share)], share, ".-", color=colour, label=name, lw=0.9, ms=4)
    if len(classes) <= 20:
        axis.set_xticks(classes, first.class_names, rotation=30)
    else:
        axis.set_xlabel("class")
    axis.set_ylabel("share")
    _legend_below(figure, axis)
    return figure


def embedding(groups: dict[str, list[Run]]) -> Figure:
    """PCA and t-SNE of the pooled test features, coloured by class or superclass."""
    columns = min(len(groups), 4)
    rows = 2 * -(-len(groups) // columns)
    figure = Figure(figsize=(10, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for number, (name, runs) in enumerate(groups.items()):
        run, (row, column) = runs[0], divmod(number, columns)
        x = run.arrays["pooled"].astype(np.float64)[:500]
        labels = run.groups[run.arrays["pooled_labels"][:500]]
        components = principal_components(x)
        for axis, title, place in (
            (axes[2 * row, column], "PCA", lambda points: points[:, :2]),
            (axes[2 * row + 1, column], "t-SNE", tsne),
        ):
            axis.set_visible(True)
            axis.set_title(f"{name}: {title}", fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
            try:
                points = place(components)
            except RuntimeError as error:
                axis.text(0.5, 0.5, f"left out: {error}", ha="center", va="center", wrap=True)
                continue
            colours = "tab10" if labels.max() < 10 else "tab20" if labels.max() < 20 else "hsv"
            dots = axis.scatter(*points.T, c=labels, cmap=colours, s=14, lw=0)
    _legend_of_classes(figure, [runs[0] for runs in groups.values()], dots)
    return figure


def _legend_of_classes(figure: Figure, runs: Sequence[Run], dots: Any) -> None:
    """The classes, or superclasses, by colour, where there are few and all runs have the same."""
    different = {tuple(run.about["superclass_names"] or run.class_names) for run in runs}
    names = next(iter(different))
    if len(different) > 1 or len(names) > 20:
        return
    handles = [
        Line2D([], [], ls="", marker="o", ms=5, color=dots.to_rgba(k)) for k in range(len(names))
    ]
    figure.legend(handles, names, loc="outside lower center", ncols=6, fontsize=8)


def _one_each(groups: dict[str, list[Run]], height: float) -> tuple[Figure, list[Any]]:
    """A figure with a panel for each group, four in a row at most."""
    columns = min(len(groups), 4)
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(10, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(groups) :]:
        axis.set_visible(False)
    return figure, axes[: len(groups)]


def principal_components(x: Float[np.ndarray, "N C"], most: int = 30) -> Float[np.ndarray, "N D"]:
    """The coordinates along the first principal axes, at least two and at most `most`.

    Examples:
        >>> principal_components(np.ones((3, 1))).tolist()
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """
    centred = x - x.mean(axis=0)
    u, singular, _ = np.linalg.svd(centred / max(np.abs(centred).max(), 1e-30), full_matrices=False)
    found = (u * singular)[:, :most]
    return np.pad(found, ((0, 0), (0, max(0, 2 - found.shape[1]))))


def fired(run: Run) -> Figure:
    """The test images that activate the purest and the flattest features most."""
    images, features = run.arrays["fired_images"], run.arrays["fired_features"]
    impurities = run.arrays[f"impurity/{run.layer}"][features]
    half = len(features) // 2
    figure = Figure(figsize=(10, 0.58 * max(half, 1) + 0.4), layout="constrained")
    for axis, title, rows in zip(
        figure.subplots(1, 2),
        ("Lowest impurity", "Highest impurity"),
        (slice(0, half), slice(half, 2 * half)),
        strict=True,
    ):
        sheet = _contact_sheet(images[rows])
        axis.imshow(sheet, interpolation="nearest")
        side = sheet.shape[0] / half
        names = [f"{c}: {x:.2f}" for c, x in zip(features[rows], impurities[rows], strict=True)]
        axis.set_yticks((np.arange(half) + 0.5) * side, names)
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(title)
    return figure


def _contact_sheet(images: np.ndarray) -> np.ndarray:
    """Images `[R, C, h, w, 3]` in rows and columns on a transparent background, `[H, W, 4]`."""
    rows, columns, height, width, _ = images.shape
    gap = max(1, height // 8)
    sheet = np.zeros((rows, height + gap, columns, width + gap, 4), np.uint8)
    sheet[:, :height, :, :width, :3] = images.transpose(0, 2, 1, 3, 4)
    sheet[:, :height, :, :width, 3] = 255
    return sheet.reshape(rows * (height + gap), columns * (width + gap), 4)


def confusion(matrix: Int[np.ndarray, "K K"], names: Sequence[str]) -> Figure:
    """Shares of each true class (rows) by predicted class."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for i, j in np.ndindex(*shares.shape):
        if matrix[i, j]:
            colour = "white" if shares[i, j] > 0.5 else "#333333"
            axis.text(j, i, f"{matrix[i, j]}", ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    figure.colorbar(image, label="share of the true class")
    return figure


def selection(groups: dict[str, list[Run]]) -> Figure:
    """Accuracy with the purest features alone, and with random subsets of the same size."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axis = figure.subplots()
    for colour, (name, runs) in zip(cycle(COLOURS), groups.items(), strict=False):
        sizes = runs[0].arrays["selection/sizes"]
        for key, style, label in (("purest", "-", name), ("random", ":", None)):
            values = np.array([run.arrays[f"selection/{key}"] for run in runs])
            mean_and_range(axis, sizes, values, colour, label, style)
    by_features_kept(axis)
    axis.set_ylabel("test accuracy of a ridge classifier")
    _legend_below(figure, axis)
    return figure
