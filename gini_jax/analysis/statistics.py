"""Paired comparisons of objectives over seeds, by pandas, scipy and statsmodels."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from statsmodels.stats.multitest import multipletests

# Metrics of result.json that tables show, with their titles; True: larger is better.
METRICS: dict[str, tuple[str, bool]] = {
    "test_accuracy": ("Test accuracy", True),
    "test_class_accuracy": ("Mean accuracy over the classes", True),
    "test_top5": ("Top-5 accuracy", True),
    "test_superclass_accuracy": ("Accuracy over superclasses", True),
    "test_loss": ("Test loss (cross-entropy)", False),
    "test_ece": ("Expected calibration error", False),
    "feature_gini": ("Gini impurity of the features", False),
    "feature_kl": ("KL from the split's class distribution", False),
    "feature_kl_uniform": ("KL from the balanced distribution", False),
    "probe_accuracy": ("Linear probe", True),
    "knn_accuracy": ("20 nearest neighbours", True),
    "nmi": ("NMI of k-means clusters", True),
    "scatter_ratio": ("Between- over within-class scatter", True),
}


def by_baseline(groups: Iterable[str], objective: str = "ce") -> dict[str, list[str]]:
    """Which groups of a sweep are compared with which: with `ce` of the same varied settings.

    Args:
        groups: `OBJECTIVE` or `OBJECTIVE-SETTING=VALUE-...`, each.
        objective: the one to compare with.

    Returns:
        By baseline, the groups compared with it, the baseline first. Groups that nothing is
        compared with are left out.

    Examples:
        >>> by_baseline(["ce", "kl", "kl-loss.terms.kl=2.0"])
        {'ce': ['ce', 'kl', 'kl-loss.terms.kl=2.0']}
        >>> by_baseline(["ce-batch_size=64", "kl-batch_size=64", "kl-batch_size=128"])
        {'ce-batch_size=64': ['ce-batch_size=64', 'kl-batch_size=64']}
    """
    settings = {group: re.split(r"-(?=[a-z_][\w.]*=)", group) for group in groups}
    found = {group: [group] for group, (name, *_) in settings.items() if name == objective}
    for group, (name, *own) in settings.items():
        fitting = [base for base in found if set(settings[base][1:]) <= set(own)]
        if name != objective and fitting:
            found[max(fitting, key=lambda base: len(settings[base]))].append(group)
    return {base: names for base, names in found.items() if len(names) > 1}


def compare(
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
        have: `difference`, its 95 % intervals `t_low, t_high` (Student's t) and `boot_low,
        boot_high` (bootstrap, BCa), `p_t` (paired t-test), `p_wilcoxon` (signed-rank), both with
        Holm's correction over the groups as `holm_t, holm_wilcoxon`, and `better`, the number of
        seeds in which the group beats the baseline. With fewer than two pairs, intervals and
        p-values are NaN.

    Examples:
        >>> rows = [("ce", 0, 0.5), ("ce", 1, 0.6), ("kl", 0, 0.6), ("kl", 1, 0.8)]
        >>> table = compare(pd.DataFrame(rows, columns=["group", "seed", "x"]), "x")
        >>> print(f"{table.loc['kl', 'difference']:.3f}", int(table.loc["kl", "better"]))
        0.150 2
    """
    wide = results.pivot_table(index="seed", columns="group", values=metric, sort=False)
    rows = {}
    for group in wide.columns:
        values = wide[group].dropna()
        row: dict[str, Any] = {"n": len(values), "mean": values.mean(), "sd": values.std(ddof=1)}
        if group != baseline and baseline in wide:
            pairs = wide[[group, baseline]].dropna()
            difference = (pairs[group] - pairs[baseline]).to_numpy()
            row |= paired(difference)
            signed = difference if larger_is_better else -difference
            row["better"] = int((signed > 0).sum())
        rows[group] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    for name in ("t", "wilcoxon"):
        table[f"holm_{name}"] = _holm(table.get(f"p_{name}", pd.Series(index=table.index)))
    return table


def paired(difference: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean of paired differences, its 95 % intervals and p-values; see `compare`.

    Examples:
        >>> found = paired([0.1, 0.2, 0.3])
        >>> print(f"{found['difference']:.3f} {found['t_low']:.3f}")
        0.200 -0.048
    """
    difference = np.asarray(difference, np.float64)
    found = {
        "pairs": len(difference),
        "difference": difference.mean() if len(difference) else np.nan,
    }
    unknown = dict.fromkeys(
        ("t_low", "t_high", "boot_low", "boot_high", "p_t", "p_wilcoxon"), np.nan
    )
    if len(difference) < 2:
        return found | unknown
    if np.ptp(difference) == 0:  # no spread: the mean is known, and no test is defined
        mean = difference[0]
        return found | unknown | dict.fromkeys(("t_low", "t_high", "boot_low", "boot_high"), mean)
    test = scipy.stats.ttest_1samp(difference, 0.0)
    interval = test.confidence_interval(0.95)
    boot = scipy.stats.bootstrap(
        (difference,), np.mean, confidence_level=0.95, n_resamples=9999, method="BCa", rng=0
    ).confidence_interval
    return found | {
        "t_low": interval.low,
        "t_high": interval.high,
        "boot_low": boot.low,
        "boot_high": boot.high,
        "p_t": test.pvalue,
        "p_wilcoxon": scipy.stats.wilcoxon(difference).pvalue,
    }


def seeds_needed(difference: Sequence[float] | np.ndarray, power: float = 0.8) -> int | None:
    """How many paired seeds a t-test at 5 % needs to see a mean difference of this size.

    Returns:
        The number; None where the differences do not vary, average to 0, or are fewer than two.

    Examples:
        >>> seeds_needed([0.01, 0.0, 0.02, -0.01])
        55
    """
    from statsmodels.stats.power import TTestPower

    difference = np.asarray(difference, np.float64)
    if len(difference) < 2 or not difference.std(ddof=1) or not difference.mean():
        return None
    effect = abs(difference.mean()) / difference.std(ddof=1)
    if effect > 5:
        return 3
    return int(np.ceil(TTestPower().solve_power(effect_size=effect, alpha=0.05, power=power)))


def detectable(difference: Sequence[float] | np.ndarray, power: float = 0.8) -> float:
    """The smallest mean difference that a paired t-test at 5 % sees with as many seeds as these.

    Args:
        difference: by seed; at least two. Only their spread counts.
        power: the probability of seeing it.

    Examples:
        >>> print(f"{detectable([0.01, 0.0, 0.02, -0.01]):.4f}")
        0.0275
    """
    from statsmodels.stats.power import TTestPower

    difference = np.asarray(difference, np.float64)
    effect = TTestPower().solve_power(nobs=len(difference), alpha=0.05, power=power)
    return float(effect * difference.std(ddof=1))


def _holm(p_values: pd.Series) -> pd.Series:
    """Holm's correction of the p-values, leaving out those that are NaN."""
    known = p_values.dropna().astype(float)
    corrected = pd.Series(np.nan, index=p_values.index, dtype=float)
    if len(known):
        corrected[known.index] = multipletests(known, method="holm")[1]
    return corrected


def markdown(table: pd.DataFrame, baseline: str = "ce") -> str:
    """A comparison as a Markdown table; "-" where there is no number."""
    head = (
        f"| objective | n | mean ± sd | difference to {baseline} | 95 % interval (t) "
        "| 95 % interval (bootstrap) | p (t) | Holm | p (Wilcoxon) | Holm | better in |"
    )
    lines = [head, "| --- " * 11 + "|"]
    for group, row in table.iterrows():
        get = row.to_dict().get
        pairs = get("pairs")
        better = (
            "-" if pairs is None or np.isnan(pairs) else f"{int(row['better'])} of {int(pairs)}"
        )
        cells = [
            str(group),
            str(int(row["n"])),
            number(row["mean"]) + ("" if np.isnan(row["sd"]) else f" ± {number(row['sd'])}"),
            number(get("difference"), sign=True),
            _interval(get("t_low"), get("t_high")),
            _interval(get("boot_low"), get("boot_high")),
            *(number(get(key), 3) for key in ("p_t", "holm_t", "p_wilcoxon", "holm_wilcoxon")),
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


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None or np.isnan(low) or np.isnan(high):
        return "-"
    return f"{low:+.4f} to {high:+.4f}"
