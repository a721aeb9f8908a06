"""Tables and the picture of docs/selectivity.md: doses of class selectivity, and what they do."""

import json
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from docs.speed_tables import RESULTS, as_table
from gini_jax.analysis.statistics import compare_by_seed, number
from gini_jax.analysis.trends import Trend, dose_trend

PARTS = {"digits": "digits", "fashion_mnist": "Fashion-MNIST", "cifar100": "CIFAR-100"}
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
    "pruned_eighth": ("ridge on an eighth of the features", True),
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
    "pruned_32": "pruned_eighth",  # of 256 features, in the first version of the protocol
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
        own = {"setting": _frozen_setting(row), "arm": row["arm"]}
        own["dose"] = row["dose"] if row["dose"] is not None else 0.0
        for seed in range(frozen["seeds"]):
            figures = {RENAMED.get(k, k): v[seed] for k, v in row["figures"].items()}
            rows.append(own | {"seed": seed} | figures)
    for part, title in PARTS.items():
        for row in _read(f"selectivity_{part}.json")["rows"]:
            if row["seed"] < 1000:  # seeds of the choice are above
                dose = row["strength"] if row["arm"] == "gini" else 0.0
                own = {"setting": title, "arm": row["arm"], "dose": dose, "seed": row["seed"]}
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


def _difference_table(outcome: str) -> str:
    groups: dict[str, dict[str, str]] = {}
    for setting in _with(outcome):
        table = differences(outcome, setting)
        groups.setdefault("ce", {})[setting] = _plain(table.loc["ce", "mean"], outcome)
        for group in table.index.drop("ce"):
            cell = _cell(table, group, outcome, 2, marked=outcome != "nll")
            groups.setdefault(str(group), {})[setting] = cell
    heads = _with(outcome)
    rows = [[f"`{g}`", *(groups[g].get(head, "-") for head in heads)] for g in groups]
    return as_table(["", *heads], rows)


def _with(outcome: str) -> list[str]:
    """The settings in which an outcome was measured."""
    table = runs()
    if outcome not in table:
        return []
    return [s for s in settings() if table.loc[table["setting"] == s, outcome].notna().any()]


def _plain(value: float, outcome: str) -> str:
    return number(value, 3) if outcome == "nll" else f"{100 * value:.1f}"


def _cell(
    table: pd.DataFrame, group: str, outcome: str, digits: int = 1, marked: bool = False
) -> str:
    """A difference in points, or in nats: bold if significant, and marked if proven small."""
    if group not in table.index or np.isnan(table.loc[group, "difference"]):
        return "-"
    row = table.loc[group]
    scale, digits = (1, 3) if outcome == "nll" else (100, digits)
    shown = f"{scale * row['difference']:+.{digits}f}"
    shown = f"**{shown}**" if row["holm_t"] < 0.05 else shown
    return shown + (" ≈" if marked and row["p_within_0.5"] < 0.05 else "")


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
    return _difference_table("nll")


@cache
def own_rates(setting: str) -> pd.DataFrame:
    """Each other loss against cross-entropy at that loss's learning rate and weight decay.

    A row per loss, as from `compare_by_seed`: differences of what the setting is tuned for.
    """
    rows = []
    for row in _read("selectivity_frozen.json")["rows"]:
        if "without" in row and _frozen_setting(row) == setting:
            pair = [np.array(row[of][tuned_for(setting)]) for of in ("figures", "without")]
            rows += [(row["arm"], seed, x) for seed, x in enumerate(pair[0] - pair[1])]
    seeds = sorted({seed for _, seed, _ in rows})
    rows += [("ce", seed, 0.0) for seed in seeds]
    return compare_by_seed(pd.DataFrame(rows, columns=["group", "seed", "x"]), "x", "ce")


def own_rate() -> str:
    """What each other loss adds to cross-entropy at the loss's own learning rate and decay."""
    shown = [s for s in settings() if s not in PARTS.values()]
    if not any("without" in row for row in _read("selectivity_frozen.json")["rows"]):
        return "Not measured in the first version of the protocol."
    arms = [arm for arm in dict.fromkeys(runs()["arm"]) if arm not in ("ce", "gini", "renyi")]
    rows = [[f"`{arm}`", *(_cell(own_rates(s), arm, "x", 2, True) for s in shown)] for arm in arms]
    note = (
        "Points of mean accuracy over the classes; in `held_out` of recall@1 on unseen classes. "
        "In bold: significant after Holm's correction over the column. ≈: within 0.5 points."
    )
    return f"{as_table(['', *shown], rows)}\n\n{note}"


def tuned_for(setting: str) -> str:
    """The outcome by which settings were chosen on validation images."""
    return "held_out_recall_at_1" if setting.endswith("held_out") else "class_accuracy"


def _frozen_setting(row: dict[str, Any]) -> str:
    return f"{NAMES[row['network']]}, {row['cell']}"


def outcomes() -> str:
    """Every outcome at the doses -0.1 and +0.1: differences from cross-entropy alone."""
    rows = []
    for outcome, (title, _) in OUTCOMES.items():
        cells = dict.fromkeys(settings(), "-")
        for setting in _with(outcome):
            table = differences(outcome, setting)
            both = [_cell(table, f"gini {dose:+g}", outcome) for dose in (-0.1, 0.1)]
            cells[setting] = " / ".join(both)
        rows.append([title, *cells.values()])
    note = (
        "Each cell: dose -0.1 / dose +0.1. Differences in points; of the negative log-likelihood "
        "in nats. In bold: significant after Holm's correction over all arms of the setting."
    )
    return f"{as_table(['', *settings()], rows)}\n\n{note}"


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
        f"**More selectivity.** Some positive dose significantly raised what a setting is tuned "
        f"for (recall@1 on unseen classes in `held_out`, else mean accuracy over the classes) in "
        f"{_named(more[0])}, and some lowered it in {_named(more[1])}; at the dose of 0.1 "
        f"({most[1]}) the accuracy changed by {most[0]} points.\n\n"
        f"**Less selectivity.** Some negative dose raised it in {_named(less[0])}, and some "
        f"lowered it in {_named(less[1])}; at -0.1 the accuracy changed by "
        f"{_span('class_accuracy', -0.1)} points. From the lowest dose to the highest, what a "
        f"setting is tuned for rises in {_named(_rising(1))} and falls in "
        f"{_named(_rising(-1))}.\n\n"
        f"**Other uses.** At the dose of 0.1, a classifier on an eighth of the features changes by "
        f"{_span('pruned_eighth', 0.1)} points, recall@1 on classes that training did not see by "
        f"{_span('held_out_recall_at_1', 0.1)}, and finding outliers by the length of the features "
        f"by {_span('outlier_auroc_norm', 0.1)}."
    )


def short() -> str:
    """The answer in one line."""
    more, less = (_directions(sign) for sign in (1, -1))
    total = len(settings())
    return (
        f"- [Class selectivity in doses](docs/selectivity.md), {total} settings: some dose for "
        f"more of it significantly raised what a setting is tuned for (accuracy, or retrieval) in "
        f"{len(more[0])}, and some lowered it in {len(more[1])}; for less of it, {len(less[0])} "
        f"and {len(less[1])}."
    )


def _directions(sign: int) -> tuple[list[str], list[str]]:
    """The settings in which some dose of a sign significantly raised, or lowered, their outcome."""
    raised, lowered = [], []
    for setting in settings():
        table = differences(tuned_for(setting), setting)
        doses = [dose for dose in set(curve(setting)["dose"]) if sign * dose > 0]
        own = table.reindex([_group("gini", dose) for dose in doses])
        proven = own.loc[own["holm_t"] < 0.05, "difference"]
        raised += [setting] if (proven > 0).any() else []
        lowered += [setting] if (proven < 0).any() else []
    return raised, lowered


def _rising(sign: int) -> list[str]:
    """The settings in which the outcome that they are tuned for has a trend of this sign."""
    found = {s: trend(s, tuned_for(s)) for s in settings()}
    return [s for s, t in found.items() if t and sign * t.rho > t.high]


def _named(found: list[str]) -> str:
    count = f"{len(found)} of {len(settings())} settings"
    return f"{count} ({'; '.join(found)})" if 0 < len(found) <= 3 else count


def _span(outcome: str, dose: float) -> str:
    """The smallest and the largest difference over the settings at a dose, in points."""
    tables, group = [differences(outcome, s) for s in _with(outcome)], _group("gini", dose)
    found = [100 * t.loc[group, "difference"] for t in tables if group in t.index]
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
    "selectivity_own_rate": own_rate,
    "selectivity_nll": calibration,
    "selectivity_outcomes": outcomes,
    "selectivity_measured": measured,
    "selectivity_references": references,
    "selectivity_times": times,
}
