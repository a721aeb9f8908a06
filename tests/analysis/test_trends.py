"""The trend over doses, against all permutations by brute force, and against SciPy."""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from gini_jax.analysis.trends import dose_trend
from gini_jax.errors import InputError

DOSES = (-0.3, 0.0, 0.1, 0.3)


def table(values):
    """A row per run of outcomes `[seeds, doses]`."""
    rows = [
        (seed, dose, x)
        for seed, own in enumerate(values)
        for dose, x in zip(DOSES, own, strict=False)
    ]
    return pd.DataFrame(rows, columns=["seed", "dose", "x"])


def every_mean(values):
    """The statistic for each way to permute the doses within each of three seeds."""
    orders = list(itertools.permutations(range(values.shape[1])))
    doses = np.arange(values.shape[1])
    of_seed = [
        [scipy.stats.spearmanr(doses, own[list(order)]).statistic for order in orders]
        for own in values
    ]
    return np.array([np.mean(each) for each in itertools.product(*of_seed)])


@pytest.mark.parametrize("seed", range(3))
def test_rho_interval_and_p_are_those_of_all_permutations(seed):
    """24^3 of them; 20,000 draws estimate a p-value to 0.4 points at most (one sigma)."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(3, 4)) + 0.5 * seed * np.arange(4)
    means = every_mean(values)
    observed = np.mean([scipy.stats.spearmanr(DOSES, own).statistic for own in values])
    p = (np.abs(means) >= abs(observed) - 1e-9).mean()
    found = dose_trend(table(values), "x", permutations=20_000)
    np.testing.assert_allclose(found.rho, observed, atol=1e-12)
    assert found.seeds == 3 and abs(found.p - p) < 0.015
    low, high = np.quantile(means, (0.025, 0.975))
    assert abs(found.low - low) < 0.07 and abs(found.high - high) < 0.07  # a step of the means


def test_p_is_that_of_pages_test_on_either_side():
    values = np.random.default_rng(5).normal(size=(4, 4)) + 0.8 * np.arange(4)
    one_sided = scipy.stats.page_trend_test(values, method="exact").pvalue
    found = dose_trend(table(values), "x", permutations=20_000)
    assert found.rho > 0 and abs(found.p - 2 * one_sided) < 0.015


def test_seeds_that_lack_an_outcome_are_left_out_and_constant_ones_count_as_no_trend():
    values = np.array([[1.0, 2, 3, 4], [5, 5, 5, 5], [1, np.nan, 3, 4]])
    found = dose_trend(table(values), "x")
    assert found.seeds == 2 and found.rho == 0.5
    nothing = dose_trend(table(values[:, :2]), "x")
    assert np.isnan(nothing.rho) and np.isnan(nothing.p)


def test_a_missing_column_and_a_dose_given_twice_are_refused():
    rows = table(np.eye(4))
    with pytest.raises(InputError, match="no column 'y'; its columns are seed, dose, x"):
        dose_trend(rows, "y")
    with pytest.raises(InputError, match=r"seed 3 has dose=0\.3 twice"):
        dose_trend(pd.concat([rows, rows.tail(1)]), "x")
