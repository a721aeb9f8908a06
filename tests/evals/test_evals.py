"""Evaluations against scikit-learn, PyTorch-free closed forms and loops in NumPy."""

import numpy as np
import pytest
import sklearn.metrics

from gini_jax.evals import EVALS, Inputs, SplitOutputs, evaluate, subsample
from gini_jax.evals.accuracy import accuracy, class_accuracy, cross_entropy, superclass_accuracy
from gini_jax.evals.calibration import expected_calibration_error
from gini_jax.evals.clusters import cluster_nmi, scatter_ratio
from gini_jax.evals.features import feature_terms
from gini_jax.evals.knn import knn_accuracy
from gini_jax.evals.probe import linear_probe
from gini_jax.evals.selection import selection_curve
from tests.helpers import reference

RNG = np.random.default_rng(0)
K, N = 7, 300
LOGITS, LABELS = RNG.normal(size=(N, K)).astype(np.float32), RNG.integers(0, K, N)
LOGITS[np.arange(N), LABELS] += 1.0


def test_accuracies_and_loss_equal_scikit_learns():
    assert accuracy(LOGITS, LABELS) == sklearn.metrics.accuracy_score(LABELS, LOGITS.argmax(1))
    top5 = sklearn.metrics.top_k_accuracy_score(LABELS, LOGITS, k=5)
    assert accuracy(LOGITS, LABELS, top=5) == pytest.approx(top5)
    balanced = sklearn.metrics.balanced_accuracy_score(LABELS, LOGITS.argmax(1))
    assert class_accuracy(LOGITS, LABELS) == pytest.approx(balanced)
    p = np.exp(LOGITS - LOGITS.max(1, keepdims=True)).astype(np.float64)
    p /= p.sum(1, keepdims=True)
    assert cross_entropy(LOGITS, LABELS) == pytest.approx(sklearn.metrics.log_loss(LABELS, p), 1e-5)
    groups = (0, 0, 1, 1, 2, 2, 2)
    hits = [groups[a] == groups[b] for a, b in zip(LOGITS.argmax(1), LABELS, strict=True)]
    assert superclass_accuracy(LOGITS, LABELS, groups) == np.mean(hits)


def test_logits_that_are_nan_are_wrong():
    assert accuracy(np.full((4, 3), np.nan), np.zeros(4, int)) == 0


def test_calibration_equals_a_loop_over_bins():
    p = np.exp(LOGITS.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    confidence, hit, total = p.max(1), p.argmax(1) == LABELS, 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(LOGITS, LABELS) == pytest.approx(total)


def test_terms_of_a_split_equal_float64_numpy():
    activations = np.abs(RNG.normal(size=(N, 9))).astype(np.float32)
    terms = feature_terms({"a": activations}, LABELS, K)
    onehot = np.eye(K)[LABELS]
    assert terms["gini"] == pytest.approx(reference.gini(activations, onehot), abs=1e-6)
    assert terms["kl"] == pytest.approx(reference.kl(activations, onehot), abs=1e-6)
    uniform = reference.kl(activations, onehot, target=np.full(K, 1 / K))
    assert terms["kl_uniform"] == pytest.approx(uniform, abs=1e-6)


def test_on_an_unbalanced_split_even_features_have_kl_from_it_but_not_from_the_balanced_one():
    labels = np.repeat(np.arange(4), [70, 10, 10, 10])
    terms = feature_terms({"a": np.eye(4)[labels].astype(np.float32)}, labels, 4)
    assert terms["kl"] > 0.3
    assert terms["kl_uniform"] == pytest.approx(0, abs=1e-6)


def test_probes_of_random_features_are_at_chance_and_of_good_ones_perfect():
    x, y = RNG.normal(size=(800, 8)), np.arange(800) % 4
    other, other_y = RNG.normal(size=(800, 8)), np.arange(800) % 4
    for probe in (linear_probe, knn_accuracy):
        assert abs(probe(x, y, other, other_y) - 0.25) < 0.06  # standard error 0.015
        good = np.eye(8)[y] + 0.05 * x
        assert probe(good, y, np.eye(8)[other_y], other_y) == 1.0
    assert cluster_nmi(x, y) < 0.05
    assert cluster_nmi(np.eye(8)[y], y) == pytest.approx(1)


def test_nearest_neighbours_equal_a_loop():
    x, y = RNG.normal(size=(60, 5)), RNG.integers(0, 3, 60)
    test, test_y = RNG.normal(size=(20, 5)), RNG.integers(0, 3, 20)
    hits = []
    for row, label in zip(test, test_y, strict=True):
        cosine = (x @ row) / np.linalg.norm(x, axis=1) / np.linalg.norm(row)
        votes = np.bincount(y[np.argsort(-cosine)[:20]], minlength=3)
        winners = np.flatnonzero(votes == votes.max())
        hits.append((label in winners) / len(winners))
    assert knn_accuracy(x, y, test, test_y) == pytest.approx(np.mean(hits))


def test_equally_near_examples_share_the_votes_that_are_left():
    """Four equal training examples and two neighbours: each order of them is as probable."""
    x, y = np.ones((4, 2)), np.array([0, 0, 0, 1])
    # Two of the four: 0 wins in 3 of 6 draws, and 3 are tied. Shared votes: 1.5 of 2 for class 0.
    assert knn_accuracy(x, y, np.ones((1, 2)), np.array([0]), neighbours=2) == 1.0
    assert knn_accuracy(np.ones((2, 2)), np.array([0, 1]), x, y, neighbours=2) == 0.5


def test_the_scatter_ratio_equals_traces_of_the_scatter_matrices():
    x, y = RNG.normal(size=(50, 4)), RNG.integers(0, 3, 50)
    within, between = np.zeros((4, 4)), np.zeros((4, 4))
    for k in range(3):
        part = x[y == k]
        centred = part - part.mean(0)
        within += centred.T @ centred
        gap = part.mean(0) - x.mean(0)
        between += len(part) * np.outer(gap, gap)
    assert scatter_ratio(x, y) == pytest.approx(np.trace(between) / np.trace(within))


def test_the_purest_features_are_enough_where_the_others_are_noise():
    y = np.arange(400) % 4
    x = np.concatenate([np.eye(4)[y], RNG.normal(size=(400, 28))], axis=1)
    impurity = np.r_[np.zeros(4), np.ones(28)]
    curve = selection_curve(x[:200], y[:200], x[200:], y[200:], impurity)
    assert curve.sizes.tolist() == [1, 2, 4, 8, 16, 32]
    assert curve.purest[2] == 1.0
    assert curve.random[2] < 0.8
    assert curve.purest[-1] == curve.random[-1]


def test_result_json_has_every_key_of_every_evaluation():
    outputs = SplitOutputs(LOGITS, LOGITS, {"pooled": np.abs(LOGITS)}, LABELS)
    inputs = Inputs(outputs, outputs, K, (0, 0, 1, 1, 2, 2, 2), np.eye(K))
    numbers, arrays = evaluate(inputs, list(EVALS))
    keys = {key for module in EVALS.values() for key in module.KEYS}
    assert keys <= set(numbers)
    assert all(numbers[key] is not None for key in keys)
    assert arrays["confusion"].sum() == N
    assert arrays["profile/pooled"].shape == (K, K)


def test_a_large_set_is_subsampled_by_a_fixed_seed():
    rows = subsample(50_000, most=1000)
    assert len(set(rows.tolist())) == 1000
    assert (rows == subsample(50_000, most=1000)).all()
    assert subsample(5, most=10).tolist() == [0, 1, 2, 3, 4]
