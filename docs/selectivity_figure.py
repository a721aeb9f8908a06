"""Draws the picture of docs/selectivity.md: `PYTHONPATH=. python docs/selectivity_figure.py`."""

from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.stats

from docs.selectivity_tables import NAMES, OUTCOMES, curve, runs, settings
from gini_jax.drawing import COLOURS

DOCS = Path(__file__).resolve().parent
MARKERS = {
    "smoothing": "s",
    "center": "P",
    "supcon": "^",
    "vcreg": "v",
    "opl": "D",
    "monosemantic": "X",
}
POINTS = {name for name in OUTCOMES if name != "nll"}


def band(setting: str, outcome: str) -> pd.DataFrame:
    """By dose: mean selectivity, and the difference from dose 0 over seeds, with its interval."""
    own = curve(setting)
    wide = own.pivot(index="seed", columns="dose", values=outcome).astype(float)
    where = own.pivot(index="seed", columns="dose", values="selectivity").astype(float).mean()
    difference = wide.sub(wide[0.0], axis=0)
    spread = difference.std(ddof=1) / np.sqrt(len(wide))
    half = spread * scipy.stats.t.ppf(0.975, max(len(wide) - 1, 1))
    return pd.DataFrame({"x": where, "mean": difference.mean(), "half": half}).sort_index()


def reference(setting: str, arm: str, outcome: str) -> tuple[float, float]:
    """Mean selectivity of another loss, and its difference from cross-entropy alone, by seed."""
    own = runs()[runs()["setting"] == setting]
    wide = own[own["arm"].isin((arm, "ce"))].pivot(index="seed", columns="arm", values=outcome)
    if arm not in wide:
        return np.nan, np.nan
    x = own.loc[own["arm"] == arm, "selectivity"].astype(float).mean()
    return x, (wide[arm] - wide["ce"]).astype(float).mean()


def styles() -> dict[str, tuple[str, str]]:
    """Colour and line of a setting: the colour says which data, the line which network."""
    kinds = list(dict.fromkeys(s.partition(", ")[2] or s for s in settings()))
    colours = dict(zip(kinds, cycle(COLOURS), strict=False))
    second = list(NAMES.values())[1]
    return {
        s: (colours[s.partition(", ")[2] or s], "--" if s.startswith(second) else "-")
        for s in settings()
    }


def draw() -> None:
    """A panel for each outcome: the difference from cross-entropy alone, by selectivity."""
    table = runs()
    shown = [name for name in OUTCOMES if name in table and table[name].notna().any()]
    columns = 4
    figure, axes = plt.subplots(
        -(-(len(shown) + 1) // columns),
        columns,
        figsize=(13, 3.1 * -(-(len(shown) + 1) // columns)),
        layout="constrained",
    )
    lines = {}
    for axis, outcome in zip(axes.flat, shown, strict=False):
        scale = 100 if outcome in POINTS else 1
        for setting, (colour, line) in styles().items():
            own = table[table["setting"] == setting]
            if own[outcome].isna().all() or curve(setting)["dose"].nunique() < 3:
                continue
            found = band(setting, outcome)
            x, mean, half = found["x"], scale * found["mean"], scale * found["half"]
            axis.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, lw=0)
            (lines[setting],) = axis.plot(x, mean, line, color=colour, lw=1.2, label=setting)
            axis.plot(found.loc[0.0, "x"], 0, "o", ms=4, color=colour)
            for arm, marker in MARKERS.items():
                x, y = reference(setting, arm, outcome)
                axis.plot(x, scale * y, marker, ms=4, color=colour, alpha=0.7, mew=0)
        axis.axhline(0, color="0.5", lw=0.6)
        title, more = OUTCOMES[outcome]
        axis.set_title(title, fontsize=10)
        axis.set_yscale("symlog", linthresh=1 if outcome in POINTS else 0.02)
        axis.yaxis.set_major_formatter("{x:g}")
        unit = "points" if outcome in POINTS else "nats"
        axis.set_ylabel(f"{unit}, {'more' if more else 'less'} is better", fontsize=8)
        axis.tick_params(labelsize=8)
    rest = list(axes.flat)[len(shown) :]
    for axis in rest:
        axis.axis("off")
    marks = [
        plt.Line2D([], [], marker=marker, ls="", color="0.4", ms=5, label=arm)
        for arm, marker in MARKERS.items()
    ]
    handles = [*lines.values(), *marks]
    rest[0].legend(handles=handles, fontsize=7.5, loc="upper left", ncols=2, frameon=False)
    figure.supxlabel("class selectivity of the features, measured on test images", fontsize=10)
    figure.savefig(DOCS / "selectivity.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw()
