"""Trends over doses: whether an outcome rises or falls with a setting, within seeds."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from gini_jax.errors import InputError


class Trend(NamedTuple):
    """Spearman's correlation of an outcome with a dose.

    Attributes:
        seeds: how many have the outcome at every dose.
        rho: the mean over the seeds of the correlation within a seed; in `[-1, 1]`.
        low: 2.5 % of the means are lower, if doses have no effect.
        high: 97.5 % of them are lower.
        p: how often a mean at least as far from 0 occurs then.
    """

    seeds: int
    rho: float
    low: float
    high: float
    p: float


def dose_trend(
    results: pd.DataFrame, outcome: str, dose: str = "dose", permutations: int = 9999, seed: int = 0
) -> Trend:
    """Tests whether an outcome follows the doses that each seed was given.

    If doses have no effect, all orders of a seed's outcomes are equally likely: they are permuted
    within seeds. The statistic is that of Page's test for ordered alternatives, up to scale. A seed
    whose outcome is the same at every dose has correlation 0.

    Args:
        results: a row per run, with the columns `seed`, `dose` and the outcome. Seeds that lack a
            dose, or whose outcome is missing at one, are left out.
        outcome: a column.
        dose: the column of the doses.
        permutations: how many are drawn.
        seed: of the draws.

    Returns:
        NaN where no seed is left, or there are fewer than three doses.

    Raises:
        InputError: a column is missing, or a seed has a dose twice.

    References:
        E. Page, "Ordered hypotheses for multiple treatments", 1963.

    Examples:
        >>> rows = [(s, d, d**3 + s) for s in range(5) for d in (-1.0, 0.0, 1.0, 2.0)]
        >>> found = dose_trend(pd.DataFrame(rows, columns=["seed", "dose", "x"]), "x")
        >>> found.rho, found.p < 0.01, found.low < 0 < found.high
        (1.0, True, True)
    """
    if missing := {"seed", dose, outcome} - {*results.columns}:
        known = ", ".join(map(str, results.columns))
        raise InputError(f"results has no column {sorted(missing)[0]!r}; its columns are {known}")
    if (twice := results.duplicated(["seed", dose])).any():
        row = results[twice].iloc[0]
        raise InputError(
            f"seed {row['seed']:g} has {dose}={row[dose]} twice, so its outcomes cannot be ranked; "
            "leave one of the two rows out"
        )
    wide = results.pivot(index="seed", columns=dose, values=outcome)
    wide = wide.astype(float).dropna()
    if not len(wide) or wide.shape[1] < 3:
        return Trend(len(wide), *[float("nan")] * 4)
    outcomes = _standardised(scipy.stats.rankdata(wide.to_numpy(), axis=1))
    doses = _standardised(scipy.stats.rankdata(wide.columns.to_numpy(float))[None])[0]
    rho = float((outcomes @ doses).mean())
    shape = (permutations, *outcomes.shape)
    orders = np.random.default_rng(seed).permuted(np.broadcast_to(outcomes, shape), axis=2)
    means = (orders @ doses).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    as_far = int((np.abs(means) >= abs(rho) - 1e-9).sum())
    return Trend(len(wide), rho, float(low), float(high), (1 + as_far) / (1 + permutations))


def _standardised(ranks: np.ndarray) -> np.ndarray:
    """Rows less their means, of length 1; rows of equal ranks become 0."""
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(lengths > 0, lengths, 1.0)
