"""The tables of a sweep, from the results that its members have so far."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gini_jax.analysis.names import short_names
from gini_jax.analysis.runs import frame_of
from gini_jax.analysis.statistics import by_baseline, compare_by_seed, comparisons, interval, number
from gini_jax.evals import TITLES
from gini_jax.storage import csv_text, json_text, write

RECORD = "sweep.json"


def write_record(workdir: Path, changes: Mapping[str, dict[str, Any]], search: bool) -> None:
    """Writes sweep.json, which lists a sweep's members.

    Args:
        workdir: the sweep's folder.
        changes: by member's name, the settings that it changes.
        search: whether settings were drawn.
    """
    write(workdir / RECORD, json_text({"search": search, "members": changes}))


def write_tables(workdir: Path) -> pd.DataFrame:
    """Writes sweep.csv and sweep.md.

    Args:
        workdir: of a sweep; the members are those of its last command.

    Returns:
        What sweep.csv holds: a row for each finished member.
    """
    table = write_csv(workdir)
    search = json.loads((workdir / RECORD).read_text())["search"]
    write(workdir / "sweep.md", search_markdown(table) if search else sweep_markdown(table))
    return table


def write_csv(workdir: Path) -> pd.DataFrame:
    """Writes sweep.csv alone, as after each member; returns what it holds."""
    record = json.loads((workdir / RECORD).read_text())
    rows = []
    for name, changes in record["members"].items():
        path = workdir / name / "result.json"
        if path.exists():
            settings = {
                f"config.{key}": tuple(value) if isinstance(value, list) else value
                for key, value in changes.items()
            }
            group = name.rpartition("-seed")[0]
            rows.append(
                {"member": name, "group": group, **settings, **json.loads(path.read_text())}
            )
    table = frame_of(rows)
    write(workdir / "sweep.csv", csv_text(table))
    return table


def sweep_markdown(table: pd.DataFrame) -> str:
    """The comparison of every metric, as Markdown."""
    if table.empty:
        return "No member has finished yet.\n"
    first = table.iloc[0]
    baselines = by_baseline(groups := list(dict.fromkeys(table["group"]))) or groups[:1]
    return (
        f"# {first['config_name']}: {len(table)} runs\n\n{summary(table)}\n\n"
        f"On {first['device']}, jax {first['jax_version']}, {first['epochs']} epochs. Differences "
        f"from `{'`, `'.join(baselines)}` are paired by seed. Holm's correction is over the "
        "objectives of each table. With one seed there is no p-value, with equal differences an "
        "interval of width 0 and no p-value; Wilcoxon's starts at 6 seeds. A small p of TOST says "
        "that two objectives are equivalent within the margin.\n\n"
        + comparisons(table, table.attrs.get("metrics", TITLES))
    )


def summary(table: pd.DataFrame, most: int = 9) -> str:
    """A line per group, the best first: its accuracy, and the difference from its baseline.

    Args:
        table: what sweep.csv holds.
        most: the largest number of lines; one more line counts the groups left out.
    """
    groups = list(dict.fromkeys(table["group"]))
    names, baselines = short_names(groups), by_baseline(groups)
    base_of = {name: base for base, own in baselines.items() for name in own if name != base}
    means = table.groupby("group", sort=False)["test_accuracy"].agg(["mean", "std", "size"])
    lines = []
    for group, row in means.sort_values("mean", ascending=False, kind="stable").iterrows():
        spread = "" if pd.isna(row["std"]) else f" ± {row['std']:.4f} over {row['size']:.0f} seeds"
        line = f"- **{names.short[group]}**: test accuracy {row['mean']:.4f}{spread}"
        if base := base_of.get(group):
            found = compare_by_seed(
                table[table["group"].isin((base, group))], "test_accuracy", base
            )
            of = found.loc[group]
            line += f"; {number(of['difference'], sign=True)} against {names.short[base]}"
            if not pd.isna(of["t_low"]):
                line += f", 95 % interval {interval(of['t_low'], of['t_high'])}"
        lines.append(f"{line}.")
    if len(lines) > most:
        lines[most:] = [f"- {len(lines) - most} more groups stand in the tables below."]
    if names.legend:
        lines.append(
            f"\nA name is {names.legend}. The intervals are not corrected for multiplicity."
        )
    return "\n".join(lines)


def search_markdown(table: pd.DataFrame) -> str:
    """What a search found, as Markdown: per objective its trials, the best first.

    Args:
        table: what sweep.csv holds.
    """
    if table.empty:
        return "No trial has finished yet.\n"
    varied = [column for column in table if column.startswith("config.")]
    parts = [
        f"# {table.iloc[0]['config_name']}: random search\n",
        "By validation accuracy, the mean over the seeds of a trial. The test split plays no part "
        "in this table: choose here, then run the best settings with fresh seeds.\n",
    ]
    for objective, rows in table.groupby("objective", sort=False):
        accuracy = rows.groupby("group", sort=False)["val_accuracy"]
        trials = rows.drop_duplicates("group").set_index("group")
        trials = trials.assign(mean=accuracy.mean(), seeds=accuracy.size())
        parts.append(f"## {objective}: {len(trials)} trials\n")
        parts.append("| validation accuracy | seeds | settings |\n| --- | --- | --- |")
        for _, row in trials.sort_values("mean", ascending=False, kind="stable").iterrows():
            own = [f"--{path}={_shown(row[path])}" for path in varied if pd.notna(row[path])]
            parts.append(f"| {row['mean']:.4f} | {row['seeds']} | {' '.join(own)} |")
        parts.append("")
    return "\n".join(parts)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
