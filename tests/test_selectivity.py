"""The study of class selectivity: its runs, its doses, and every number of its page."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from benchmarks import selectivity_doses as doses
from docs import selectivity_tables as tables
from gini_jax.heads.training import Head, Run, Settings, batches_of, hidden_of, logits_of
from gini_jax.losses.terms import objective_name
from gini_jax.training.checks import check_config
from tests.conftest import ROOT

RESULTS = ROOT / "results"


def test_all_runs_are_valid_and_no_seed_of_the_choice_is_compared():
    for part, seeds in doses.SEEDS.items():
        best = dict.fromkeys(doses.REFERENCES, 0.1)
        runs = list(doses.wanted(part, best))
        compared = [run for run in runs if run[3]]
        assert len(compared) == seeds * (len(doses.DOSES) + len(doses.REFERENCES))
        assert {run[2] for run in runs if not run[3]} == {doses.TUNING_SEED}
        assert doses.TUNING_SEED not in {run[2] for run in compared}
        for arm, strength, seed, _ in runs[:20] + compared[:20]:
            config = doses.config_of(part, arm, strength, seed)
            check_config(config, num_devices=1)
            named = {"ce": "ce", "smoothing": "ce", "gini": "gini"}.get(arm, arm)
            named = "anti_gini" if arm == "gini" and strength < 0 else named
            assert config.objective == named == objective_name(config.loss.terms)


def test_the_strength_is_that_with_the_best_validation_accuracy():
    trials = ((0.03, 0.9, 0.2), (0.1, 0.9, 0.1), (0.3, 0.8, 0.0))  # of equals, the lowest loss
    rows = [
        {"arm": "opl", "strength": s, "seed": doses.TUNING_SEED}
        | {"figures": {"val_accuracy": accuracy, "val_loss": loss}}
        for s, accuracy, loss in trials
    ]
    rows.append({"arm": "opl", "strength": 0.3, "seed": 0, "figures": {"val_accuracy": 1.0}})
    assert doses.chosen(rows) == {"opl": 0.1}


def test_a_file_of_runs_with_other_settings_is_left_alone(tmp_path):
    out = tmp_path / "out.json"
    doses.saved(doses.opened(out, {"epochs": 3}), out)
    assert doses.opened(out, {"epochs": 3})["rows"] == []
    with pytest.raises(SystemExit, match=r"'epochs': 3.*'epochs': 5.*another --out"):
        doses.opened(out, {"epochs": 5})


def numpy_gini(x, labels, num_classes):
    means = np.stack([np.abs(x[labels == k]).mean(axis=0) for k in range(num_classes)])
    p = means / means.sum(axis=0)
    return (1 - (p**2).sum(axis=0)).mean()


def test_heads_hold_the_ratio_of_the_gradients_of_term_and_cross_entropy():
    """The norms of two steps by float64 NumPy: softmax minus labels, and central differences."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3
    gini = (("gini", (("weight", 1.0),)),)
    settings = Settings(gini, (16,), steps=2, batch_size=20, hold_gradient_ratios=True)
    head = Head(settings, 3)
    run = Run(jax.random.key(7), jnp.arange(60), jnp.asarray(y), strength=0.2)
    x = jnp.asarray(x)
    state, norms = head.start(run, x), np.zeros(2)
    for step in range(2):
        rows = np.asarray(
            batches_of(settings, run.key, jnp.asarray(y), 3, jnp.arange(step, step + 1))
        )
        hidden = np.asarray(hidden_of(state[0], x[rows[0]]), np.float64)
        own = y[rows[0]]
        logits = np.asarray(logits_of(state[0], hidden.astype(np.float32)), np.float64)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        of_ce = (p - np.eye(3)[own]) / len(own) @ np.asarray(state[0]["w2"], np.float64).T
        of_gini = np.zeros_like(hidden)
        for place in zip(*np.nonzero(hidden), strict=True):  # a feature of 0 has no gradient
            moved = np.repeat(hidden[None], 2, axis=0)
            moved[:, *place] += (1e-6, -1e-6)
            up, down = (numpy_gini(each, own, 3) for each in moved)
            of_gini[place] = (up - down) / 2e-6
        norms = 0.95 * norms + 0.05 * np.array([(of_ce**2).sum(), (of_gini**2).sum()])
        state = head.advance(state, run, x, None, jnp.arange(step, step + 1))
        found = state[2].norms
        np.testing.assert_allclose([found.ce, found.terms["gini"]], norms, rtol=2e-3)
    weight = head._objective(run, None).weights_at(state[2])["gini"]
    np.testing.assert_allclose(weight, np.sqrt(norms[0] / norms[1]), rtol=2e-3)


def test_an_epoch_of_a_head_holds_each_example_once():
    """Also where the steps come in parts, and where an epoch does not divide into batches."""
    settings, labels = Settings(batch_size=8), jnp.zeros(27, int)
    key = jax.random.key(0)
    whole = batches_of(settings, key, labels, 2, jnp.arange(9))
    for epoch in (whole[:3], whole[3:6], whole[6:]):
        assert len(np.unique(epoch)) == 24
    assert not np.array_equal(whole[:3], whole[3:6])
    parts = [batches_of(settings, key, labels, 2, jnp.arange(a, b)) for a, b in ((0, 4), (4, 9))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    few = batches_of(Settings(batch_size=64), key, labels, 2, jnp.arange(2))
    assert few.shape == (2, 27) and len(np.unique(few[1])) == 27


def test_heads_train_the_same_in_one_piece_or_several():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(30, 4)), jnp.float32)
    run = Run(jax.random.key(1), jnp.arange(30), jnp.arange(30) % 3)
    head = Head(Settings(hidden=(8,), steps=10, batch_size=8), 3)
    whole = jax.jit(head.train)(run, x)
    state = head.start(run, x)
    for steps in (jnp.arange(0, 3), jnp.arange(3, 10)):
        state = head.advance(state, run, x, None, steps)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, state[0])


# ---------------------------------------------------------------------------- the page


def page(name):
    file = ROOT / ("README.md" if name == "selectivity_short" else "docs/selectivity.md")
    return file.read_text()


QUICK = ("trends", "trends_renyi", "measured", "references", "times")  # others run many tests


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if name.removeprefix("selectivity_") in QUICK else pytest.mark.slow
        )
        for name in tables.SELECTIVITY_TABLES
    ],
)
def test_the_tables_of_the_page_are_those_of_the_results(name):
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", page(name), re.S)
    assert found and found[1] == tables.SELECTIVITY_TABLES[name]()


def frozen_rows(network, cell):
    rows = json.loads((RESULTS / "selectivity_frozen.json").read_text())["rows"]
    return [row for row in rows if (row["network"], row["cell"]) == (network, cell)]


def test_a_trend_and_a_difference_recompute_from_the_file_by_scipy():
    rows = {(row["arm"], row["dose"]): row for row in frozen_rows("mobilenet_v2", "few")}
    given = [d for d in doses.DOSES if d]
    of_dose = {d: rows["gini", d]["figures"]["nll"] for d in given}
    of_dose[0.0] = rows["ce", None]["figures"]["nll"]
    order = sorted(of_dose)
    rho = [
        scipy.stats.spearmanr(order, [of_dose[d][seed] for d in order]).statistic
        for seed in range(20)
    ]
    found = tables.trend("MobileNetV2, few", "nll")
    np.testing.assert_allclose(found.rho, np.mean(rho), atol=1e-9)
    ce = np.array(rows["ce", None]["figures"]["class_accuracy"])
    own = np.array(rows["gini", 0.2]["figures"]["class_accuracy"])
    row = tables.differences("class_accuracy", "MobileNetV2, few").loc["gini +0.2"]
    np.testing.assert_allclose(row["difference"], (own - ce).mean(), atol=1e-9)
    p = scipy.stats.ttest_rel(own, ce).pvalue
    np.testing.assert_allclose(row["p_t"], p, rtol=1e-6)
