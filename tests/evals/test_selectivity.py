"""Neural collapse and selectivity, against their definitions in float64 and closed cases."""

import numpy as np
import pytest

from gini_jax.evals import SplitOutputs, collapse, selectivity
from gini_jax.evals.inputs import Inputs

RNG = np.random.default_rng(0)
K, C, N = 5, 8, 200
LABELS = RNG.permutation(np.arange(N) % K)
MEANS = RNG.normal(size=(K, C))
FEATURES = MEANS[LABELS] + 0.3 * RNG.normal(size=(N, C))


def inputs_of(features, labels, logits=None, head=None):
    logits = np.zeros((len(labels), labels.max() + 1)) if logits is None else logits
    outputs = SplitOutputs(logits, features, {"pooled": np.abs(features)}, labels)
    return Inputs(outputs, outputs, int(labels.max()) + 1, head=head)


def test_nc_1_to_4_are_those_of_the_definitions():
    head = RNG.normal(size=(C, K))
    logits = FEATURES @ head
    found = collapse.evaluate(inputs_of(FEATURES, LABELS, logits, head))
    means = np.stack([FEATURES[k == LABELS].mean(0) for k in range(K)])
    centred = means - means.mean(0)
    inside = FEATURES - means[LABELS]
    s_w, s_b = inside.T @ inside / N, centred.T @ centred / K
    assert found["nc1"] == pytest.approx(np.trace(s_w @ np.linalg.pinv(s_b, rcond=1e-10)) / K)
    lengths = np.linalg.norm(centred, axis=1)
    assert found["nc2_norm"] == pytest.approx(lengths.std() / lengths.mean())
    pairs = [
        abs(centred[i] @ centred[j] / lengths[i] / lengths[j] + 1 / (K - 1))
        for i in range(K)
        for j in range(K)
        if i != j
    ]
    assert found["nc2"] == pytest.approx(np.mean(pairs))
    gap = head.T / np.linalg.norm(head) - centred / np.linalg.norm(centred)
    assert found["nc3"] == pytest.approx((gap**2).sum())
    distances = ((FEATURES[:, None] - means) ** 2).sum(2)
    expected = (distances.argmin(1) != logits.argmax(1)).mean()
    assert found["nc4"] == pytest.approx(expected)


def test_a_simplex_has_collapsed():
    simplex = 3 * (np.eye(K) - 1 / K)
    found = collapse.evaluate(inputs_of(simplex[LABELS] + 7, LABELS, np.eye(K)[LABELS], simplex))
    assert found == pytest.approx(dict.fromkeys(collapse.KEYS, 0.0), abs=1e-9)


def test_scale_and_place_of_the_features_do_not_count():
    a = collapse.collapse(FEATURES, LABELS)
    b = collapse.collapse(1e6 * (FEATURES + 3), LABELS)
    for name in ("nc1", "nc2", "nc2_norm"):
        assert a[name] == pytest.approx(b[name], rel=1e-6)


@pytest.mark.parametrize("features", [np.zeros((6, 3)), np.ones((6, 3))])
def test_where_the_means_coincide_there_are_no_numbers(features):
    found = collapse.evaluate(inputs_of(features, np.arange(6) % 2))
    assert found == dict.fromkeys(collapse.KEYS)


def test_without_a_linear_head_nc3_is_none():
    found = collapse.evaluate(inputs_of(FEATURES, LABELS))
    assert found["nc3"] is None and found["nc1"] > 0


def test_selectivity_is_morcos_index():
    x = np.abs(FEATURES)
    x[:, 0] = 0  # a dead feature
    indices = []
    for c in range(1, C):
        means = [x[k == LABELS, c].mean() for k in range(K)]
        largest = max(means)
        others = np.mean([m for k, m in enumerate(means) if k != int(np.argmax(means))])
        indices.append((largest - others) / (largest + others))
    assert selectivity.class_selectivity(x, LABELS) == pytest.approx(np.mean(indices))
    one_hot = selectivity.evaluate(inputs_of(np.eye(K)[LABELS], LABELS))
    assert one_hot["selectivity"] == 1.0 and one_hot["top_purity"] == 1.0
    assert selectivity.class_selectivity(np.zeros((4, 2)), np.arange(4)) is None


def test_the_purity_of_the_top_images_is_counted():
    x = np.abs(FEATURES)
    shares = []
    for c in range(C):
        top = sorted(range(N), key=lambda i: -x[i, c])[:10]
        shares.append(max(np.bincount(LABELS[top])) / 10)
    assert selectivity.top_purity(x, LABELS) == pytest.approx(np.mean(shares))
    assert selectivity.top_purity(x[:3], LABELS[:3]) >= 1 / 3  # fewer than ten images


@pytest.mark.parametrize("shape", [(50, 6), (6, 50)])
def test_the_effective_rank_is_that_of_the_singular_values(shape):
    x = RNG.normal(size=shape)
    singular = np.linalg.svd(x, compute_uv=False)
    p = singular / singular.sum()
    assert selectivity.effective_rank(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    identical = np.repeat(x[:, :1], 6, axis=1)
    assert selectivity.effective_rank(identical) == pytest.approx(1.0, abs=1e-5)
    assert selectivity.effective_rank(np.zeros((4, 4))) is None


def test_correlation_is_numpys():
    x = FEATURES.copy()
    matrix = np.corrcoef(x.T)
    expected = np.abs(matrix[~np.eye(C, dtype=bool)]).mean()
    assert selectivity.feature_correlation(x) == pytest.approx(expected)
    with_constant = np.concatenate([x, np.ones((N, 1))], axis=1)
    assert selectivity.feature_correlation(with_constant) == pytest.approx(expected)
    assert selectivity.feature_correlation(np.ones((5, 3))) is None
