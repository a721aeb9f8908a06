"""Tables and the picture of docs/selectivity.md: doses of class selectivity, and what they do."""

import json
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from docs.speed_tables import RESULTS, as_table
from gini_jax.analysis.statistics import compare_by_seed, number
from gini_jax.analysis.trends import Trend, dose_trend

PARTS = ("digits", "fashion_mnist", "cifar100")
NAMES = {"mobilenet_v2": "MobileNetV2", "efficientnet_lite0": "Lite0"}
# Outcome -> title, and whether more is better. Shares and areas are shown in points.
OUTCOMES = {
    "accuracy": ("accuracy", True),
    "class_accuracy": ("mean accuracy over the classes", True),
    "nll": ("negative log-likelihood", False),
    "ece": ("calibration error", False),
    "knn_accuracy": ("20 nearest neighbours", True),
    "recall_at_1": ("recall@1", True),
    "held_out_recall_at_1": ("recall@1, unseen classes", True),
    "fewshot_5": ("5-shot, unseen classes", True),
    "outlier_auroc_probability": ("outliers, by probability", True),
    "outlier_auroc_norm": ("outliers, by length", True),
    "pruned_32": ("ridge on 32 random features", True),
    "corruption_accuracy": ("corruptions", True),
    "robust_pgd_linf": ("PGD", True),
}
MEASURES = {
    "selectivity": "selectivity",
    "nc1": "NC1",
    "effective_rank": "effective rank",
    "feature_correlation": "correlation of features",
    "top_purity": "purity of top images",
}
RENAMED = {
    "test_accuracy": "accuracy",
    "test_class_accuracy": "class_accuracy",
    "test_loss": "nll",
    "test_ece": "ece",
}


@cache
def runs() -> pd.DataFrame:
    """A row per run that is compared: `setting, arm, dose, seed`, outcomes and measures."""
    rows: list[dict[str, Any]] = []
    frozen = _read("selectivity_frozen.json")
    for row in frozen["rows"]:
        own = {"setting": f"{NAMES[row['network']]}, {row['cell']}", "arm": row["arm"]}
        own["dose"] = row["dose"] if row["dose"] is not None else 0.0
        for seed in range(frozen["seeds"]):
            rows.append(own | {"seed": seed} | {k: v[seed] for k, v in row["figures"].items()})
    for part in PARTS:
        for row in _read(f"selectivity_{part}.json")["rows"]:
            if row["seed"] < 1000:  # seeds of the choice are above
                dose = row["strength"] if row["arm"] == "gini" else 0.0
                own = {"setting": part, "arm": row["arm"], "dose": dose, "seed": row["seed"]}
                rows.append(own | {RENAMED.get(k, k): v for k, v in row["figures"].items()})
    return pd.DataFrame(rows)


def _read(name: str) -> dict[str, Any]:
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else {"rows": [], "seeds": 0}


def settings() -> list[str]:
    """Those of which there are runs, in the order of the protocol."""
    return list(dict.fromkeys(runs()["setting"]))


@cache
def curve(setting: str, term: str = "gini") -> pd.DataFrame:
    """The runs of a setting that were given a dose, cross-entropy alone being dose 0."""
    own = runs()[(runs()["setting"] == setting) & runs()["arm"].isin((term, "ce"))]
    complete = own.groupby("seed")["dose"].nunique()
    return own[own["seed"].isin(complete.index[complete == complete.max()])]


@cache
def trend(setting: str, outcome: str, term: str = "gini") -> Trend | None:
    """The trend of an outcome over the doses; None where it was not measured."""
    own = curve(setting, term)
    if outcome not in own or own[outcome].isna().all() or own["dose"].nunique() < 3:
        return None
    return dose_trend(own, outcome, permutations=1999)


def _trends(term: str) -> str:
    """Spearman's correlation with the dose, for each outcome and setting."""
    given = set(runs().loc[runs()["arm"] == term, "setting"])
    shown = [setting for setting in settings() if setting in given]
    heads = ["", *(f"{setting} ({len(set(curve(setting, term)['seed']))})" for setting in shown)]
    rows = []
    for outcome, title in {**MEASURES, **{k: v[0] for k, v in OUTCOMES.items()}}.items():
        cells = []
        for setting in shown:
            found = trend(setting, outcome, term)
            if found is None or np.isnan(found.rho):
                cells.append("-")
                continue
            outside = not found.low <= found.rho <= found.high
            cells.append(f"**{found.rho:+.2f}**" if outside else f"{found.rho:+.2f}")
        if set(cells) != {"-"}:
            rows.append([title, *cells])
    widths = {s: trend(s, "selectivity", term) for s in shown}
    limits = [f"{s}: ±{w.high:.2f}" for s, w in widths.items() if w]
    note = (
        "In brackets: seeds. In bold: outside of the interval that holds 95 % of such means if the "
        f"doses do nothing, about {'; '.join(limits)}."
    )
    return f"{as_table(heads, rows)}\n\n{note}"


def trends() -> str:
    """For the Gini term."""
    return _trends("gini")


def trends_renyi() -> str:
    """For the Renyi term."""
    return _trends("renyi")


@cache
def differences(outcome: str, setting: str) -> pd.DataFrame:
    """Every dose and reference against cross-entropy, paired by seed."""
    own = runs()[runs()["setting"] == setting]
    own = own.assign(group=[_group(arm, dose) for arm, dose in zip(own.arm, own.dose, strict=True)])
    return compare_by_seed(own, outcome, "ce", OUTCOMES[outcome][1])


def _group(arm: str, dose: float) -> str:
    return f"{arm} {dose:+g}" if dose else str(arm)


def _difference_table(outcome: str, signed: bool = True) -> str:
    groups: dict[str, dict[str, str]] = {}
    for setting in settings():
        own = runs()[runs()["setting"] == setting]
        if outcome not in own or own[outcome].isna().all():
            continue
        table = differences(outcome, setting)
        for group, row in table.iterrows():
            if group == "ce":
                cell = f"{100 * row['mean']:.1f}" if signed else number(row["mean"], 3)
            elif np.isnan(row["difference"]):
                continue
            else:
                scale, digits = (100, 2) if signed else (1, 3)
                cell = f"{scale * row['difference']:+.{digits}f}"
                cell = f"**{cell}**" if row["holm_t"] < 0.05 else cell
                cell += " ≈" if signed and row["p_within_0.5"] < 0.05 else ""
            groups.setdefault(str(group), {})[setting] = cell
    heads = [s for s in settings() if any(s in own for own in groups.values())]
    order = ["ce", *(g for g in groups if g != "ce")]
    rows = [[f"`{g}`", *(groups[g].get(head, "-") for head in heads)] for g in order]
    return as_table(["", *heads], rows)


def accuracies() -> str:
    """Mean accuracy over the classes: cross-entropy's, and the differences from it in points."""
    note = (
        "Cross-entropy in per cent, all others as differences in points. In bold: significant "
        "after Holm's correction over the column. ≈: within 0.5 points (TOST, p < 0.05)."
    )
    return f"{_difference_table('class_accuracy')}\n\n{note}"


def intervals() -> str:
    """Differences in mean accuracy over the classes at four doses, with their 95 % intervals."""
    shown = (-0.3, -0.1, 0.1, 0.3)
    rows = []
    for setting in settings():
        table, cells = differences("class_accuracy", setting), []
        for dose in shown:
            group = _group("gini", dose)
            if group not in table.index or np.isnan(table.loc[group, "t_low"]):
                cells.append("-")
                continue
            row = table.loc[group]
            low, high = 100 * row["t_low"], 100 * row["t_high"]
            cells.append(f"{100 * row['difference']:+.2f} ({low:+.2f} to {high:+.2f})")
        rows.append([setting, str(len(set(curve(setting)["seed"]))), *cells])
    return as_table(["", "n", *(f"dose {dose:+g}" for dose in shown)], rows)


def calibration() -> str:
    """Negative log-likelihood, the same way."""
    return _difference_table("nll", signed=False)


def outcomes() -> str:
    """Every outcome at the doses -0.1 and +0.1: differences from cross-entropy alone."""
    rows = []
    for outcome, (title, _) in OUTCOMES.items():
        cells = []
        for setting in settings():
            own = runs()[runs()["setting"] == setting]
            if outcome not in own or own[outcome].isna().all():
                cells.append("-")
                continue
            table = differences(outcome, setting)
            both = [_cell(table, f"gini {dose:+g}", outcome) for dose in (-0.1, 0.1)]
            cells.append(" / ".join(both))
        rows.append([title, *cells])
    note = (
        "Each cell: dose -0.1 / dose +0.1. Differences in points; of the negative log-likelihood "
        "in nats. In bold: significant after Holm's correction over all arms of the setting."
    )
    return f"{as_table(['', *settings()], rows)}\n\n{note}"


def _cell(table: pd.DataFrame, group: str, outcome: str) -> str:
    if group not in table.index or np.isnan(table.loc[group, "difference"]):
        return "-"
    scale, digits = (1, 3) if outcome == "nll" else (100, 1)
    shown = f"{scale * table.loc[group, 'difference']:+.{digits}f}"
    return f"**{shown}**" if table.loc[group, "holm_t"] < 0.05 else shown


def measured() -> str:
    """Selectivity, NC1 and effective rank by dose."""
    shown = (-0.3, -0.1, 0.0, 0.1, 0.3)
    rows = []
    for setting in settings():
        means = curve(setting).groupby("dose")[["selectivity", "nc1", "effective_rank"]].mean()
        cells = [
            f"{means.loc[d, 'selectivity']:.2f}, {means.loc[d, 'nc1']:.2f}, "
            f"{means.loc[d, 'effective_rank']:.0f}"
            if d in means.index
            else "-"
            for d in shown
        ]
        rows.append([setting, *cells])
    return as_table(["selectivity, NC1, rank", *(f"{d:+g}" if d else "0" for d in shown)], rows)


def references() -> str:
    """Mean selectivity with cross-entropy alone and with each reference."""
    arms = [arm for arm in dict.fromkeys(runs()["arm"]) if arm not in ("gini", "renyi")]
    means = runs()[runs()["dose"] == 0].groupby(["arm", "setting"])["selectivity"].mean()
    rows = [
        [f"`{arm}`", *(number(means.get((arm, setting)), 2) for setting in settings())]
        for arm in arms
    ]
    return as_table(["", *settings()], rows)


def answer() -> str:
    """The answer in three sentences, with its numbers."""
    more, less = (_directions(sign) for sign in (1, -1))
    means = runs()[runs()["arm"].isin(("gini", "ce"))].groupby(["setting", "dose"])["selectivity"]
    selective = means.mean().unstack()
    most = [
        _span("class_accuracy", 0.1),
        f"selectivity {_range(selective[0.1], 2)} instead of {_range(selective[0.0], 2)}",
    ]
    return (
        f"**Accuracy.** Some positive dose raised the mean accuracy over the classes significantly "
        f"in {_named(more[0])}, and some lowered it in {_named(more[1])}; at the dose of 0.1 "
        f"({most[1]}) it changed by {most[0]} points.\n\n"
        f"**Less selectivity.** Some negative dose raised it in {_named(less[0])}, and some "
        f"lowered it in {_named(less[1])}; at -0.1 it changed by "
        f"{_span('class_accuracy', -0.1)} points. From the lowest dose to the highest it "
        f"rises in {_named(_rising(1))} and falls in "
        f"{_named(_rising(-1))}.\n\n"
        f"**Other uses.** At the dose of 0.1, a classifier on 32 random features changes by "
        f"{_span('pruned_32', 0.1)} points, recall@1 on classes that training did not see by "
        f"{_span('held_out_recall_at_1', 0.1)}, and finding outliers by the length of the features "
        f"by {_span('outlier_auroc_norm', 0.1)}."
    )


def short() -> str:
    """The answer in one line."""
    more, less = (_directions(sign) for sign in (1, -1))
    total = len(settings())
    return (
        f"- [Class selectivity in doses](docs/selectivity.md), {total} settings: some dose for "
        f"more of it raised the mean accuracy over the classes significantly in {len(more[0])}, "
        f"and some lowered it in {len(more[1])}; for less of it, {len(less[0])} and {len(less[1])}."
    )


def _directions(sign: int) -> tuple[list[str], list[str]]:
    """The settings in which some dose of a sign raised accuracy significantly, or lowered it."""
    raised, lowered = [], []
    for setting in settings():
        table = differences("class_accuracy", setting)
        doses = [dose for dose in set(curve(setting)["dose"]) if sign * dose > 0]
        own = table.reindex([_group("gini", dose) for dose in doses])
        proven = own.loc[own["holm_t"] < 0.05, "difference"]
        raised += [setting] if (proven > 0).any() else []
        lowered += [setting] if (proven < 0).any() else []
    return raised, lowered


def _rising(sign: int) -> list[str]:
    """The settings in which accuracy has a trend of this sign."""
    found = {s: trend(s, "class_accuracy") for s in settings()}
    return [s for s, t in found.items() if t and sign * t.rho > t.high]


def _named(found: list[str]) -> str:
    count = f"{len(found)} of {len(settings())} settings"
    return f"{count} ({'; '.join(found)})" if 0 < len(found) <= 3 else count


def _span(outcome: str, dose: float) -> str:
    """The smallest and the largest difference over the settings at a dose, in points."""
    found = []
    for setting in settings():
        own = runs()[runs()["setting"] == setting]
        if outcome in own and not own[outcome].isna().all():
            table = differences(outcome, setting)
            if _group("gini", dose) in table.index:
                found.append(100 * table.loc[_group("gini", dose), "difference"])
    found = [x for x in found if np.isfinite(x)]
    low, high = (f"{x:+.1f}".replace("-0.0", "0.0") for x in (min(found), max(found)))
    return low if low == high else f"{low} to {high}"


def _range(values: pd.Series, digits: int) -> str:
    return f"{values.min():.{digits}f} to {values.max():.{digits}f}"


def times() -> str:
    """How many runs there are, and how long they took."""
    rows = []
    for name in ("frozen", *PARTS):
        report = _read(f"selectivity_{name}.json")
        if not report["rows"]:
            continue
        hours = sum(row["seconds"] for row in report["rows"]) / 3600
        each = 1 if "part" in report else report["seeds"]
        compared = sum(row["seed"] < 1000 if "part" in report else each for row in report["rows"])
        command = f"python benchmarks/selectivity_{'frozen' if name == 'frozen' else 'runs'}.py"
        command += "" if name == "frozen" else f" --part={name}"
        command += "" if name in ("digits", "fashion_mnist") else " --data_dir=DIR"
        rows.append([f"`{command} --out=FILE`", f"{compared:,}", f"{hours:.1f} h"])
    return as_table(["command", "runs that are compared", f"time, {_core()}"], rows)


def _core() -> str:
    report = _read("selectivity_frozen.json")
    return f"one core, beside other work (jax {report.get('jax', '')})"


SELECTIVITY_TABLES = {
    "selectivity_answer": answer,
    "selectivity_short": short,
    "selectivity_trends": trends,
    "selectivity_trends_renyi": trends_renyi,
    "selectivity_accuracies": accuracies,
    "selectivity_intervals": intervals,
    "selectivity_nll": calibration,
    "selectivity_outcomes": outcomes,
    "selectivity_measured": measured,
    "selectivity_references": references,
    "selectivity_times": times,
}
