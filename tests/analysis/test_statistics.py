"""The comparison of a sweep's objectives and settings, against scipy and by hand."""

import gc
import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from gini_jax.analysis.runs import Run
from gini_jax.analysis.sensitivity import (
    sensitivity,
    varied_alone,
    varied_settings,
    varied_table,
)
from gini_jax.analysis.statistics import (
    compare_by_seed,
    detectable,
    markdown,
    over_common_seeds,
    paired,
    without_rounding,
)
from gini_jax.analysis.sweep_tables import sweep_markdown
from gini_jax.errors import InputError
from gini_jax.modes.members import members_of
from tests.helpers import tiny

RNG = np.random.default_rng(0)
BASE = RNG.normal(0.5, 0.02, 8)
OTHERS = {"a": BASE + RNG.normal(0.01, 0.01, 8), "b": BASE + RNG.normal(0, 0.01, 8)}


@pytest.fixture(autouse=True, scope="module")
def small_heap():
    """statsmodels collects garbage at every correction, which is slow in a process with much."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def results():
    groups = {"ce": BASE, **OTHERS}
    rows = [(g, seed, x) for g, values in groups.items() for seed, x in enumerate(values)]
    return pd.DataFrame(rows, columns=["group", "seed", "x"])


def test_the_comparison_equals_scipys_tests(results):
    table = compare_by_seed(results, "x")
    for name, values in OTHERS.items():
        row = table.loc[name]
        assert row["n"] == 8
        assert row["mean"] == pytest.approx(values.mean())
        assert row["sd"] == pytest.approx(values.std(ddof=1))
        assert row["p_t"] == pytest.approx(scipy.stats.ttest_rel(values, BASE).pvalue)
        assert row["p_wilcoxon"] == pytest.approx(scipy.stats.wilcoxon(values, BASE).pvalue)
        assert row["better"] == (values > BASE).sum()
        difference = values - BASE
        half = scipy.stats.t.ppf(0.975, 7) * difference.std(ddof=1) / np.sqrt(8)
        assert row["t_low"] == pytest.approx(difference.mean() - half)
        assert row["t_high"] == pytest.approx(difference.mean() + half)
        for margin in (0.005, 0.01):
            error = difference.std(ddof=1) / np.sqrt(8)
            sides = (margin + difference.mean()) / error, (margin - difference.mean()) / error
            expected = max(scipy.stats.t.sf(side, 7) for side in sides)
            assert row[f"p_within_{100 * margin:g}"] == pytest.approx(expected)


def test_holms_correction_is_that_of_its_definition(results):
    table = compare_by_seed(results, "x").loc[["a", "b"]]
    p = sorted(table["p_t"])
    expected = [min(1, 2 * p[0]), min(1, max(2 * p[0], p[1]))]
    assert sorted(table["holm_t"]) == pytest.approx(expected)


def test_with_one_seed_there_is_no_p_value(results):
    table = compare_by_seed(results[results["seed"] == 0], "x")
    assert table[["p_t", "holm_t", "p_wilcoxon", "t_low", "p_within_1"]].isna().all(axis=None)
    row = next(line for line in markdown(table).splitlines() if line.startswith("| a"))
    assert row.count("| - ") == 7


def test_pairs_are_the_seeds_that_both_have(results):
    table = compare_by_seed(results[(results["group"] != "a") | (results["seed"] > 2)], "x")
    difference = OTHERS["a"][3:] - BASE[3:]
    assert table.loc["a", "pairs"] == 5
    assert table.loc["a", "difference"] == pytest.approx(difference.mean())


def test_smaller_may_be_better(results):
    better = compare_by_seed(results, "x", larger_is_better=False).loc["a", "better"]
    assert better == (OTHERS["a"] < BASE).sum()


def test_equal_runs_have_no_test():
    found = paired([0.1, 0.1, 0.1])
    assert found["difference"] == found["t_low"] == found["t_high"] == pytest.approx(0.1)
    assert np.isnan(found["p_t"])


def test_equal_differences_of_accuracies_are_recognised_whatever_the_rounding():
    found = paired(np.array([0.85, 0.90]) - np.array([0.80, 0.85]))
    assert np.isnan(found["p_t"])
    for images in (7, 400, 6084, 10_000):
        for _ in range(100):
            ce = RNG.integers(images // 2, images, 4)
            shift = RNG.integers(-images // 4, images // 4 + 1)
            found = paired((np.minimum(ce, images - 1) + shift) / images - ce / images)
            if (ce < images).all():
                assert np.isnan(found["p_t"]), (images, ce, shift)


def test_tests_on_accuracies_equal_those_on_counts():
    """The signed-rank test sees ties and zeros only where the counts have them."""
    for images in (400, 6084, 10_000):
        for _ in range(12):
            ce, other = RNG.integers(images - 8, images, (2, 8))
            counts = other - ce
            found = paired(other / images - ce / images)
            assert (without_rounding(other / images - ce / images) > 0).sum() == (counts > 0).sum()
            if np.ptp(counts):
                assert found["p_wilcoxon"] == pytest.approx(scipy.stats.wilcoxon(counts).pvalue)
                assert found["p_t"] == pytest.approx(scipy.stats.ttest_1samp(counts, 0).pvalue)


def test_differences_that_cancel_have_the_mean_0_and_a_report():
    for _ in range(300):
        counts = RNG.integers(-5, 6, 3)
        found = paired(np.array([*counts, -counts.sum()]) / 400 + 0.9 - 0.9)
        assert found["difference"] == 0.0
    rows = [("ce", 0, 0.9), ("ce", 1, 0.8), ("kl", 0, 0.8), ("kl", 1, 0.9)]
    table = compare_by_seed(pd.DataFrame(rows, columns=["group", "seed", "x"]), "x")
    assert "| +0.0000 |" in markdown(table)


def test_wilcoxons_p_starts_where_it_can_reach_5_percent():
    assert np.isnan(paired(np.arange(1.0, 6))["p_wilcoxon"])
    assert paired(np.arange(1.0, 7))["p_wilcoxon"] == pytest.approx(2 / 2**6)


def test_a_seed_that_a_group_has_twice_is_refused(results):
    again = results.iloc[:1]
    with pytest.raises(InputError, match=r"group 'ce' has seed 0 twice"):
        compare_by_seed(pd.concat([results, again]), "x")


def test_columns_of_unequal_seeds_are_shown_over_the_common_ones(results):
    fewer = results[(results["group"] != "a") | (results["seed"] < 3)]
    shown = compare_by_seed(over_common_seeds(fewer), "x")
    assert list(shown["n"]) == [3, 3, 3]
    assert shown.loc["ce", "mean"] == pytest.approx(BASE[:3].mean())


def test_the_detectable_difference_is_seen_with_the_power_that_it_promises():
    """By the noncentral t distribution."""
    difference = OTHERS["a"] - BASE
    n, sd = len(difference), difference.std(ddof=1)
    shift = detectable(difference) / sd * np.sqrt(n)
    critical = scipy.stats.t.ppf(0.975, n - 1)
    power = scipy.stats.nct.sf(critical, n - 1, shift) + scipy.stats.nct.cdf(
        -critical, n - 1, shift
    )
    assert power == pytest.approx(0.8, abs=1e-4)


# ------------------------------------------------------------- settings


def run_of(config, accuracy):
    result = {"objective": config.objective, "seed": config.seed, "test_accuracy": accuracy}
    return Run(None, "", result, json.loads(config.to_json()), [], {})


def varied_runs():
    """Two seeds of `ce`, and of `gini_kl` with three weights and two choices of layers."""
    vary = ["loss.terms.gini=0.05,0.5,5.0"]
    members = members_of(tiny.get_config(), ["ce", "gini_kl"], [0, 1], vary)
    members += members_of(tiny.get_config(), ["gini_kl"], [0, 1], ["loss.layers=('stage1',)"])
    accuracies = np.random.default_rng(1).uniform(0.4, 0.5, len(members))
    groups = {}
    for member, accuracy in zip(members, accuracies, strict=True):
        group = member.name.rpartition("-seed")[0]
        groups.setdefault(group, []).append(run_of(member.config, accuracy))
    return groups


def test_only_what_a_sweep_varies_is_a_varied_setting():
    assert varied_settings(varied_table(varied_runs())) == [
        "config.loss.layers",
        "config.loss.terms.gini",
    ]
    same = {"ce": [run_of(tiny.get_config("ce"), 0.4)], "kl": [run_of(tiny.get_config("kl"), 0.5)]}
    assert varied_settings(varied_table(same)) == []


def test_a_line_joins_the_means_of_runs_that_differ_in_one_setting():
    groups = varied_runs()
    axes = sensitivity(varied_table(groups)).axes
    by_layer, by_weight = axes
    (line,) = by_weight.containers
    assert line.get_label() == "gini_kl"
    expected = {
        weight: [run.result["test_accuracy"] for run in groups[f"gini_kl-loss.terms.gini={weight}"]]
        for weight in (0.05, 0.5, 5.0)
    }
    np.testing.assert_allclose(line[0].get_xdata().astype(float), list(expected))
    np.testing.assert_allclose(
        line[0].get_ydata().astype(float), [np.mean(x) for x in expected.values()]
    )
    (spread,) = line[2]
    lengths = [np.ptp(segment[:, 1]) for segment in spread.get_segments()]
    np.testing.assert_allclose(lengths, [2 * np.std(x, ddof=1) for x in expected.values()])
    assert [tick.get_text() for tick in by_layer.get_xticklabels()] == ["stage1", "stage2"]
    (dashed,) = [x for x in by_weight.lines if x.get_label() == "ce"]
    ce = np.mean([run.result["test_accuracy"] for run in groups["ce"]])
    np.testing.assert_allclose(dashed.get_ydata(), ce)


def test_no_line_is_left_out_and_settings_that_vary_together_have_no_panel():
    rows = [
        {
            "objective": "kl",
            "seed": 0,
            "test_accuracy": 0.5,
            "config.a": a,
            "config.b": b,
            "config.c": b,
        }
        for a in range(2)
        for b in range(9)
    ]
    (axis,) = [axis for axis in sensitivity(pd.DataFrame(rows)).axes if axis.get_visible()]
    assert axis.get_xlabel() == "a"
    assert len({(line.get_label()) for line in axis.containers}) == 9
    together = pd.DataFrame(rows).query("`config.a` == 0").drop(columns="config.a")
    assert varied_alone(together) == {}


def test_a_sweep_over_a_setting_of_all_compares_within_its_values():
    rng = np.random.default_rng(2)
    rows = [
        {
            "group": f"{objective}-batch_size={size}",
            "seed": seed,
            "test_accuracy": rng.uniform(),
            "config_name": "x",
            "device": "cpu",
            "jax_version": "0",
            "epochs": 1,
        }
        for objective in ("ce", "kl")
        for size in (64, 128)
        for seed in range(3)
    ]
    table = pd.DataFrame(rows)
    text = sweep_markdown(table)
    wide = table.pivot(index="seed", columns="group", values="test_accuracy")
    for size in (64, 128):
        difference = (wide[f"kl-batch_size={size}"] - wide[f"ce-batch_size={size}"]).mean()
        (row,) = [x for x in text.splitlines() if x.startswith(f"| kl-batch_size={size} ")]
        assert f"| {difference:+.4f} |" in row
        assert f"difference to ce-batch_size={size} |" in text
    text = sweep_markdown(table[table["group"] != "ce-batch_size=128"])
    mean = wide["kl-batch_size=128"].mean()
    (row,) = [x for x in text.splitlines() if x.startswith("| kl-batch_size=128 ")]
    assert f"| 3 | {mean:.4f} ± " in row
    assert "Without `ce` of the same settings" in text
    text = sweep_markdown(table[table["group"].str.startswith("ce")])
    difference = (wide["ce-batch_size=128"] - wide["ce-batch_size=64"]).mean()
    assert f"| {difference:+.4f} |" in text
