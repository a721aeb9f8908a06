"""How a metric depends on the settings that a sweep varied: a table, and its picture."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from gini_jax.analysis.figures import COLOURS
from gini_jax.analysis.runs import Run
from gini_jax.analysis.statistics import METRICS
from gini_jax.config import flattened

# What tells runs apart besides their settings.
_NOT_VARIED = {"seed", "objective", "name"}


def varied_table(groups: dict[str, list[Run]]) -> pd.DataFrame:
    """One row per run: its result, and `config.SETTING` of each setting that the runs vary.

    A term's weight is varied where an objective has it with different weights.
    """
    rows = []
    for run in (run for runs in groups.values() for run in runs):
        settings = {
            f"config.{path}": str(value) if isinstance(value, (list, bool)) else value
            for path, value in flattened(run.config).items()
            if path not in _NOT_VARIED
        }
        rows.append({**run.result, **settings})
    table = pd.DataFrame(rows)
    fixed = [
        name
        for name in table.columns
        if name.startswith("config.") and (table.groupby("objective")[name].nunique() < 2).all()
    ]
    return table.drop(columns=fixed)


def varied_settings(table: pd.DataFrame) -> list[str]:
    """The columns of the settings that a table's runs vary.

    Examples:
        >>> varied_settings(pd.DataFrame(columns=["seed", "config.loss.start_epoch"]))
        ['config.loss.start_epoch']
    """
    return [name for name in table.columns if name.startswith("config.")]


def sensitivity(table: pd.DataFrame, metric: str = "test_accuracy") -> Figure:
    """A panel for each varied setting: mean and standard deviation over the seeds by value.

    A line joins runs that differ in this setting alone. Runs of `ce` in which a setting does not
    vary are a horizontal band.

    Args:
        table: one row per run: `objective`, the metric, and a column `config.SETTING` for each
            varied setting; empty where the run does not have the setting.
        metric: the column to draw.
    """
    settings = varied_settings(table)
    columns = min(len(settings), 3)
    rows = -(-len(settings) // columns)
    figure = Figure(figsize=(10, 3.1 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axis, setting in zip(axes, settings, strict=False):
        _panel(axis, table, setting, [other for other in settings if other != setting], metric)
        axis.set_xlabel(setting.removeprefix("config."))
        axis.legend(fontsize=7)
        axis.grid()
    for axis in axes[len(settings) :]:
        axis.set_visible(False)
    for axis in axes[::columns]:
        axis.set_ylabel(METRICS[metric][0])
    return figure


def _panel(
    axis: Any, table: pd.DataFrame, setting: str, others: Sequence[str], metric: str
) -> None:
    own = table[table[setting].notna()]
    values = sorted(own[setting].unique(), key=lambda x: (len(x), x) if isinstance(x, str) else x)
    numeric = not isinstance(values[0], str)
    places = dict(zip(values, values if numeric else range(len(values)), strict=True))
    lines = {
        key: runs
        for key, runs in own.groupby(["objective", *others], dropna=False, sort=False)
        if runs[setting].nunique() > 1
    }
    for colour, (key, runs) in zip(COLOURS, lines.items(), strict=False):
        by_value = runs.groupby(setting)[metric].agg(["mean", "std"])
        by_value = by_value.loc[[value for value in values if value in by_value.index]]
        x = [places[value] for value in by_value.index]
        spread = by_value["std"].fillna(0)
        line = axis.errorbar(x, by_value["mean"], spread, fmt="o-", ms=4, lw=1.2, capsize=3)
        for artist in line.get_children():
            artist.set_color(colour)
        line.set_label(_label(key, list(lines), others))
    baseline = table[(table["objective"] == "ce") & table[setting].isna()][metric]
    if len(baseline):
        mean, sd = baseline.mean(), baseline.std() if len(baseline) > 1 else 0.0
        axis.axhline(mean, color="#7d8590", lw=1, ls="--", label="ce")
        axis.axhspan(mean - sd, mean + sd, color="#7d8590", alpha=0.15, lw=0)
    if numeric and min(values) > 0 and max(values) >= 8 * min(values):
        axis.set_xscale("log")
        axis.minorticks_off()
    axis.set_xticks(list(places.values()), [_text(value) for value in values])
    axis.margins(x=0.12)


def _label(key: Any, keys: Sequence[Any], others: Sequence[str]) -> str:
    """The objective, and those other settings in which the lines of a panel differ."""
    parts = [
        f"{name.rpartition('.')[2]} {_text(value)}"
        for place, (name, value) in enumerate(zip(others, key[1:], strict=True), start=1)
        if len({_text(other[place]) for other in keys}) > 1
    ]
    return ", ".join([str(key[0]), *parts])


def _text(value: Any) -> str:
    """A value on an axis or in a legend."""
    if isinstance(value, str):
        return value.strip("()[]").replace("'", "").rstrip(",")
    return f"{value:g}"
