"""Paired comparisons of objectives over seeds, by pandas, scipy and statsmodels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from statsmodels.stats.multitest import multipletests

from gini_jax.analysis.names import parts_of
from gini_jax.errors import InputError
from gini_jax.evals import TITLES

MARGINS = (0.5, 1)  # points of accuracy within which two objectives count as equivalent
_SAME = 1e-9


def by_baseline(groups: Iterable[str], objective: str = "ce") -> dict[str, list[str]]:
    """Assigns each group of a sweep to its baseline: `ce` with the same varied settings.

    Args:
        groups: `OBJECTIVE` or `OBJECTIVE-SETTING=VALUE-...`, each.
        objective: the one to compare with.

    Returns:
        For each baseline, the groups compared with it, the baseline first. Baselines without other
        groups are left out.

    Examples:
        >>> by_baseline(["ce", "kl", "kl-loss.terms.kl=2.0"])
        {'ce': ['ce', 'kl', 'kl-loss.terms.kl=2.0']}
        >>> by_baseline(["ce-batch_size=64", "kl-batch_size=64", "kl-batch_size=128"])
        {'ce-batch_size=64': ['ce-batch_size=64', 'kl-batch_size=64']}
    """
    parts = {group: parts_of(group) for group in groups}
    found = {group: [group] for group, (name, _) in parts.items() if name == objective}
    for group, (name, own) in parts.items():
        fitting = [base for base in found if parts[base][1].items() <= own.items()]
        if name != objective and fitting:
            found[max(fitting, key=lambda base: len(parts[base][1]))].append(group)
    return {base: names for base, names in found.items() if len(names) > 1}


def compare_by_seed(
    results: pd.DataFrame, metric: str, baseline: str = "ce", larger_is_better: bool = True
) -> pd.DataFrame:
    """Compares groups of runs with a baseline, paired by seed.

    Args:
        results: one row per run, with the columns `group`, `seed` and the metric.
        metric: the column to compare.
        baseline: the group that the others are compared with.
        larger_is_better: for counting in how many seeds a group beats the baseline.

    Returns:
        One row per group: `n, mean, sd`; and against the baseline, over the `pairs` seeds that both
        have, what `paired` gives: `difference`, its 95 % interval `t_low, t_high`, `p_t`,
        `p_wilcoxon` and the equivalence tests `p_within_0.5, p_within_1`; the first two p-values
        with Holm's correction over the groups as `holm_t, holm_wilcoxon`; and `better`, the number
        of seeds in which the group beats the baseline. With fewer than two pairs, interval and
        p-values are NaN.

    Raises:
        InputError: a group has a seed twice.

    Examples:
        >>> rows = [("ce", 0, 0.5), ("ce", 1, 0.6), ("kl", 0, 0.6), ("kl", 1, 0.8)]
        >>> table = compare_by_seed(pd.DataFrame(rows, columns=["group", "seed", "x"]), "x")
        >>> print(f"{table.loc['kl', 'difference']:.3f}", int(table.loc["kl", "better"]))
        0.150 2
    """
    twice = results[results.duplicated(["group", "seed"])]
    if len(twice):
        group, seed = twice.iloc[0][["group", "seed"]]
        raise InputError(
            f"group {group!r} has seed {seed} twice, so its runs cannot be paired by seed; give "
            "runs of other settings another group, or leave one of them out"
        )
    wide = results.pivot(index="seed", columns="group", values=metric)
    wide = wide[list(dict.fromkeys(results["group"]))].astype(float)
    wide = wide.where(np.isfinite(wide))
    rows = {}
    for group in wide.columns:
        values = wide[group].dropna()
        row: dict[str, Any] = {"n": len(values), "mean": values.mean(), "sd": values.std(ddof=1)}
        if group != baseline and baseline in wide:
            pairs = wide[[group, baseline]].dropna()
            difference = without_rounding(pairs[group] - pairs[baseline])
            row |= paired(difference)
            signed = difference if larger_is_better else -difference
            row["better"] = int((signed > 0).sum())
        rows[group] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    for name in ("t", "wilcoxon"):
        table[f"holm_{name}"] = _holm(table.get(f"p_{name}", pd.Series(index=table.index)))
    return table


def over_common_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """The runs of those seeds that all groups have; all runs, if there is no such seed.

    Examples:
        >>> rows = [("ce", 0), ("ce", 1), ("kl", 1)]
        >>> over_common_seeds(pd.DataFrame(rows, columns=["group", "seed"]))["seed"].tolist()
        [1, 1]
    """
    groups = results.groupby("seed")["group"].nunique()
    common = groups[groups == results["group"].nunique()].index
    return results[results["seed"].isin(common)] if len(common) else results


def without_rounding(difference: Any) -> np.ndarray:
    """Differences of measured values without the rounding error of the subtraction.

    Accuracies are counts over a number of images, so equal differences are common; as floating-
    point numbers they differ by 1e-16. Magnitudes closer than 1e-9 become equal, and those below
    1e-9 become 0: no split has a billion images.

    Examples:
        >>> without_rounding(np.array([0.85 - 0.80, 0.90 - 0.85, 0.1 - 0.1])).tolist()
        [0.04999999999999993, 0.04999999999999993, 0.0]
    """
    difference = np.asarray(difference, np.float64)
    magnitude = np.abs(difference)
    order = np.argsort(magnitude, kind="stable")
    ascending = magnitude[order]
    starts = np.diff(ascending, prepend=0.0) > _SAME  # where the next larger magnitude begins
    values = np.concatenate([[0.0], ascending[starts]])[np.cumsum(starts)]
    exact = np.empty_like(values)
    exact[order] = values
    return np.copysign(exact, difference) + 0.0  # no negative zero


def paired(difference: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Statistics of differences that are paired by seed.

    Args:
        difference: by seed; see `without_rounding`, which is applied.

    Returns:
        `pairs`; `difference`, the mean; its 95 % interval by Student's t, `t_low, t_high`; `p_t`,
        of the paired t-test; `p_wilcoxon`, of the signed-rank test, from 6 pairs on, because with
        fewer it cannot be below 0.05; and `p_within_0.5, p_within_1`, of two one-sided t-tests
        (TOST) that the mean lies within 0.5 or 1 points (0.005 or 0.01): small where the two are
        equivalent. If all differences are equal, the interval has width 0, and no test is defined:
        their p-values are NaN, as all are with fewer than two pairs.

    References:
        D. J. Schuirmann, "A comparison of the two one-sided tests procedure and the power approach
        for assessing the equivalence of average bioavailability", 1987.

    Examples:
        >>> found = paired([0.1, 0.2, 0.3])
        >>> print(f"{found['difference']:.3f} {found['t_low']:.3f}")
        0.200 -0.048
    """
    difference = without_rounding(difference)
    mean = difference.mean() if len(difference) else np.nan
    mean = 0.0 if abs(mean) < _SAME else mean  # differences that cancel
    margins = {f"p_within_{points:g}": points / 100 for points in MARGINS}
    found = {"pairs": len(difference), "difference": mean}
    unknown = dict.fromkeys(("t_low", "t_high", "p_t", "p_wilcoxon", *margins), np.nan)
    if len(difference) < 2:
        return found | unknown
    if np.ptp(difference) == 0:
        return found | unknown | {"t_low": mean, "t_high": mean}
    test = scipy.stats.ttest_1samp(difference, 0.0)
    interval = test.confidence_interval(0.95)
    found |= {"t_low": interval.low, "t_high": interval.high, "p_t": test.pvalue}
    enough = len(difference) >= 6
    found["p_wilcoxon"] = scipy.stats.wilcoxon(difference).pvalue if enough else np.nan
    for name, margin in margins.items():
        above = scipy.stats.ttest_1samp(difference, -margin, alternative="greater").pvalue
        below = scipy.stats.ttest_1samp(difference, margin, alternative="less").pvalue
        found[name] = max(above, below)
    return found


def detectable(difference: Sequence[float] | np.ndarray, power: float = 0.8) -> float:
    """The smallest mean difference that a paired t-test at 5 % detects with this many seeds.

    Args:
        difference: by seed; at least two. Only their spread counts.
        power: the probability of detecting it.

    Examples:
        >>> print(f"{detectable([0.01, 0.0, 0.02, -0.01]):.4f}")
        0.0275
    """
    from statsmodels.stats.power import TTestPower

    difference = without_rounding(difference)
    effect = TTestPower().solve_power(nobs=len(difference), alpha=0.05, power=power)
    return float(effect * difference.std(ddof=1))


def _holm(p_values: pd.Series) -> pd.Series:
    """Holm's correction of the p-values, leaving out those that are NaN."""
    known = p_values.dropna().astype(float)
    corrected = pd.Series(np.nan, index=p_values.index, dtype=float)
    if len(known):
        corrected[known.index] = multipletests(known, method="holm")[1]
    return corrected


def markdown(table: pd.DataFrame, baseline: str = "ce", points: bool = True) -> str:
    """A comparison as a Markdown table; "-" where there is no number.

    Args:
        table: what `compare_by_seed` returns.
        baseline: the group that the others are compared with.
        points: whether the metric is an accuracy, for which equivalence is tested.
    """
    head = ["objective", "n", "mean ± sd", f"difference to {baseline}", "95 % interval (t)"]
    head += ["p (t)", "Holm", "p (Wilcoxon)", "Holm"]
    tests = [f"p_within_{margin:g}" for margin in MARGINS] if points else []
    head += [f"p (TOST, ±{margin:g} points)" for margin in MARGINS] if points else []
    head.append("better in")
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for group, row in table.iterrows():
        get = row.to_dict().get
        pairs = get("pairs")
        better = (
            "-" if pairs is None or np.isnan(pairs) else f"{int(row['better'])} of {int(pairs)}"
        )
        p_values = ("p_t", "holm_t", "p_wilcoxon", "holm_wilcoxon", *tests)
        cells = [
            str(group),
            str(int(row["n"])),
            number(row["mean"]) + ("" if np.isnan(row["sd"]) else f" ± {number(row['sd'])}"),
            number(get("difference"), sign=True),
            interval(get("t_low"), get("t_high")),
            *(number(get(key), 3) for key in p_values),
            better,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """A number for a table; "-" for none.

    Examples:
        >>> number(0.12345), number(None), number(0.5, sign=True)
        ('0.1235', '-', '+0.5000')
    """
    if value is None or np.isnan(value):
        return "-"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def interval(low: float | None, high: float | None) -> str:
    """An interval for a table; "-" for none.

    Examples:
        >>> interval(-0.01, 0.02), interval(None, None)
        ('-0.0100 to +0.0200', '-')
    """
    if low is None or high is None or np.isnan(low) or np.isnan(high):
        return "-"
    return f"{low:+.4f} to {high:+.4f}"


def comparisons(table: pd.DataFrame, metrics: Mapping[str, Any] = TITLES) -> str:
    """Every metric of a table's runs compared with cross-entropy, as Markdown.

    Args:
        table: one row per run, with the columns `group` and `seed`.
        metrics: the columns, with their titles and whether larger is better.
    """
    groups = list(dict.fromkeys(table["group"]))
    found = by_baseline(groups) or {groups[0]: groups}
    alone = [group for group in groups if not any(group in names for names in found.values())]
    parts = []
    for metric, (title, larger) in metrics.items():
        if metric not in table or not table[metric].notna().any():
            continue
        parts.append(f"## {title}\n")
        points = "accuracy" in metric or metric == "test_top5"
        measured = table[table[metric].notna()]
        for baseline, compared in found.items():
            rows = measured[measured["group"].isin(compared)]
            if baseline in set(rows["group"]):
                of = compare_by_seed(rows, metric, baseline, larger)
                parts.append(markdown(of, baseline, points) + "\n")
        if own := [group for group in alone if group in set(measured["group"])]:
            parts.append("Without `ce` of the same settings:\n")
            of = compare_by_seed(measured[measured["group"].isin(own)], metric)
            parts.append(markdown(of, points=points) + "\n")
    return "\n".join(parts)
