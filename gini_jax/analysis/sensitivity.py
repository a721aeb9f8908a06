"""How a metric depends on the settings that a sweep varied: a table, and its picture."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from gini_jax.analysis.runs import Run
from gini_jax.config.registry import flattened
from gini_jax.drawing import COLOURS, plain_numbers
from gini_jax.evals import TITLES
from gini_jax.training.workdir import CHANGEABLE_ON_RESUME

# Settings that do not distinguish runs, or that comparisons treat separately.
_NOT_VARIED = {"seed", "objective", "name", *CHANGEABLE_ON_RESUME}


def varied_table(groups: dict[str, list[Run]]) -> pd.DataFrame:
    """One row per run: its result, and `config.SETTING` of each setting that the runs vary.

    A term's weight counts as varied if runs of one objective differ in it.
    """
    rows = []
    for run in (run for runs in groups.values() for run in runs):
        settings = {
            f"config.{path.removesuffix('.weight')}": str(value)
            if isinstance(value, (list, bool))
            else value
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


def varied_alone(table: pd.DataFrame) -> dict[str, dict[str, pd.DataFrame]]:
    """By setting, and by label of its line, the runs that differ in this setting alone."""
    return {name: found for name in varied_settings(table) if (found := _lines(table, name))}


def sensitivity(table: pd.DataFrame, metric: str = "test_accuracy") -> Figure:
    """A panel for each varied setting: mean and standard deviation over the seeds by value.

    A line joins runs that differ in this setting alone. If all runs of `ce` have the same
    settings, they are a horizontal band. Settings that never vary alone have no panel.

    Args:
        table: one row per run: `objective`, the metric, and a column `config.SETTING` for each
            varied setting; empty where the run does not have the setting.
        metric: the column to draw.
    """
    lines = varied_alone(table)
    columns = max(1, min(len(lines), 3))
    rows = max(1, -(-len(lines) // columns))
    figure = Figure(figsize=(10, 3.1 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    ce = table[table["objective"] == "ce"]
    alike = (ce[varied_settings(table)].nunique() < 2).all()
    for axis, (setting, own) in zip(axes, lines.items(), strict=False):
        _panel(axis, setting, own, metric)
        if alike and len(ce):
            mean, sd = ce[metric].mean(), ce[metric].std() if len(ce) > 1 else 0.0
            axis.axhline(mean, color="#7d8590", lw=1, ls="--", label="ce")
            axis.axhspan(mean - sd, mean + sd, color="#7d8590", alpha=0.15, lw=0)
        axis.set_xlabel(setting.removeprefix("config."))
        axis.legend(fontsize=7)
        axis.grid()
    for axis in axes[len(lines) :]:
        axis.set_visible(False)
    for axis in axes[::columns]:
        axis.set_ylabel(TITLES[metric][0])
    return figure


def _lines(table: pd.DataFrame, setting: str) -> dict[str, pd.DataFrame]:
    """By label, runs that differ in one setting alone."""
    others = [name for name in varied_settings(table) if name != setting]
    found = {
        key: runs
        for key, runs in table.groupby(["objective", *others], dropna=False, sort=False)
        if runs[setting].nunique() > 1
    }
    return {_label(key, list(found), others): runs for key, runs in found.items()}


def _panel(axis: Any, setting: str, lines: dict[str, pd.DataFrame], metric: str) -> None:
    found = pd.concat(lines.values())[setting].dropna().unique()
    values = sorted(found, key=lambda x: (len(x), x) if isinstance(x, str) else x)
    numeric = not isinstance(values[0], str)
    places = dict(zip(values, values if numeric else range(len(values)), strict=True))
    for number, (label, runs) in enumerate(lines.items()):
        by_value = runs.groupby(setting)[metric].agg(["mean", "std"])
        by_value = by_value.loc[[value for value in values if value in by_value.index]]
        x, spread = [places[value] for value in by_value.index], by_value["std"].fillna(0)
        colour, style = COLOURS[number % len(COLOURS)], {"fmt": "o-", "ms": 4, "lw": 1.2}
        line = axis.errorbar(x, by_value["mean"], spread, color=colour, capsize=3, **style)
        line[0].set_linestyle(("-", "--", ":", "-.")[number // len(COLOURS) % 4])
        line.set_label(label)
    if numeric and min(values) > 0 and max(values) >= 8 * min(values):
        axis.set_xscale("log")
        axis.minorticks_off()
        plain_numbers(axis.xaxis)
    axis.set_xticks(list(places.values()), [_text(value) for value in values])
    axis.margins(x=0.12)


def _label(key: Any, keys: Sequence[Any], others: Sequence[str]) -> str:
    """The objective, and those other settings in which the lines of a panel differ."""
    parts = [
        f"{name.rpartition('.')[2]} {_text(value)}"
        for place, (name, value) in enumerate(zip(others, key[1:], strict=True), start=1)
        if len({_text(other[place]) for other in keys}) > 1 and not pd.isna(value)
    ]
    return ", ".join([str(key[0]), *parts])


def _text(value: Any) -> str:
    """A value on an axis or in a legend."""
    if isinstance(value, str):
        return value.strip("()[]").replace("'", "").rstrip(",")
    return f"{value:g}"
