"""Values and gradients equal an independent float64 computation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gini_jax import losses
from tests.helpers import reference

TERMS = {
    "gini": (losses.gini_loss, reference.gini),
    "kl": (losses.kl_loss, reference.kl),
    "kl, present": (partial(losses.kl_loss, target="present"), reference.kl_present),
    "entropy": (losses.entropy_loss, reference.entropy),
    "renyi": (losses.renyi_loss, reference.renyi),
    "mutual_information": (losses.mutual_information_loss, reference.mutual_information),
}


@st.composite
def batches(draw):
    """Features, one-hot or soft rows, the integers where there are any, and weights."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, k, c = draw(st.sampled_from([(1, 2, 3), (12, 4, 5), (7, 7, 1)]))  # few, as each compiles
    spatial = draw(st.sampled_from([(), (2, 3)]))
    features = rng.normal(size=(n, *spatial, c)) * draw(st.sampled_from([1.0, 1e-2, 30.0]))
    if draw(st.booleans()):
        features = np.maximum(features, 0)
    labels = rng.integers(0, k, n)
    onehot = np.eye(k)[labels]
    if draw(st.booleans()):
        onehot, labels = rng.dirichlet(np.ones(k), n), None
    weights = draw(st.sampled_from(["none", "mask", "weights"]))
    w = {"none": None, "mask": rng.integers(0, 2, n), "weights": rng.uniform(0, 2, n)}[weights]
    return features.astype(np.float32), onehot.astype(np.float32), labels, w


@partial(jax.jit, static_argnames=("term", "num_classes"))
def _value_and_gradient(term, features, labels, num_classes, where):
    loss = partial(TERMS[term][0], num_classes=num_classes, where=where)
    return jax.value_and_grad(loss)(features, labels)


def _call(term, features, onehot, labels, w):
    where = None if w is None else jnp.asarray(w, jnp.float32)
    labels = onehot if labels is None else jnp.asarray(labels)
    return _value_and_gradient(term, features, labels, onehot.shape[1], where)


@pytest.mark.parametrize("term", TERMS)
@settings(max_examples=25, deadline=None)
@given(batch=batches())
def test_value_equals_float64_numpy(term, batch):
    features, onehot, labels, w = batch
    value, _ = _call(term, features, onehot, labels, w)
    assert value.dtype == jnp.float32
    expected = TERMS[term][1](features, onehot, w)
    np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("term", TERMS)
@settings(max_examples=35, deadline=None)
@given(batch=batches())
def test_gradient_equals_pytorch_autograd(term, batch):
    pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    features, onehot, labels, w = batch
    if w is not None and np.sum(w) == 0:
        w = None  # 0 / 0 in the reference; test_losses_safe has that case
    value, gradient = _call(term, features, onehot, labels, w)
    expected_value, expected = reference.torch_value_and_gradient(term, features, onehot, w)
    np.testing.assert_allclose(value, expected_value, rtol=2e-5, atol=2e-6)
    # Profiles are scale-free, so each feature's gradient goes with 1 / its activation.
    seen = features if w is None else features[w > 0]
    weakest = np.abs(seen).reshape(-1, features.shape[-1]).max(axis=0).min()
    rounding = 2e-5 * np.abs(expected).max() + 4e-6 / (weakest + 1e-3)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=rounding)


def test_profile_and_distribution_equal_float64_numpy():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(20, 4, 4, 6)), rng.integers(0, 5, 20)
    onehot = np.eye(5)[labels]
    np.testing.assert_allclose(
        losses.class_profile(features, onehot), reference.profile(features, onehot), rtol=1e-5
    )
    np.testing.assert_allclose(
        losses.class_distribution(jnp.asarray(labels), num_classes=5), onehot.mean(0), rtol=1e-6
    )


def test_a_given_target_replaces_the_batch_distribution():
    rng = np.random.default_rng(1)
    features, onehot = rng.normal(size=(20, 6)), np.eye(5)[rng.integers(0, 5, 20)]
    target = rng.dirichlet(np.ones(5))
    value = losses.kl_loss(features, onehot, target=target)
    np.testing.assert_allclose(value, reference.kl(features, onehot, target=target), rtol=1e-5)


def test_layers_are_weighted_and_averaged():
    rng = np.random.default_rng(2)
    onehot = np.eye(4)[rng.integers(0, 4, 16)]
    features = {"a": rng.normal(size=(16, 2, 2, 5)), "b": rng.normal(size=(16, 7))}
    loss, terms = losses.discriminability_loss(
        features, onehot, gini_weight={"a": 0.1, "b": 0.7}, kl_weight=[2.0, 3.0]
    )
    gini = [reference.gini(features[layer], onehot) for layer in "ab"]
    kl = [reference.kl(features[layer], onehot) for layer in "ab"]
    expected = np.dot([0.1, 0.7], gini) / 2 + np.dot([2.0, 3.0], kl) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(
        [terms["gini"], terms["kl"]], [np.mean(gini), np.mean(kl)], rtol=1e-5
    )


@pytest.mark.parametrize("impurity", ["gini", "entropy"])
@pytest.mark.parametrize("names", [("stage4", "pooled"), tuple(range(11))])
def test_a_sequence_of_weights_keeps_the_order_of_the_layers_over_mapped_axes(impurity, names):
    rng = np.random.default_rng(5)
    onehot = np.eye(4)[rng.integers(0, 4, (2, 8))]
    layers = {name: rng.normal(size=(2, 8, 5)) for name in names}
    weights = np.arange(1.0, len(names) + 1)
    given = layers if isinstance(names[0], str) else list(layers.values())

    def loss(i):
        features = jax.tree.map(lambda x: jnp.asarray(x)[i], given)
        if isinstance(names[0], str):
            features = {name: features[name] for name in names}
        return losses.discriminability_loss(
            features,
            jnp.asarray(onehot)[i],
            gini_weight=weights,
            kl_weight=0.0,
            impurity=impurity,
            axis_name="i",
        )[0]

    value = jax.jit(jax.vmap(loss, axis_name="i"))(jnp.arange(2))
    of_impurity = getattr(reference, impurity)
    by_layer = [of_impurity(layers[name].reshape(16, 5), onehot.reshape(16, 4)) for name in names]
    np.testing.assert_allclose(value, np.mean(weights * by_layer), rtol=1e-5)


def test_entropy_takes_the_place_of_gini():
    rng = np.random.default_rng(3)
    features, onehot = rng.normal(size=(16, 5)), np.eye(4)[rng.integers(0, 4, 16)]
    loss, _ = losses.discriminability_loss(features, onehot, impurity="entropy")
    expected = 0.5 * reference.entropy(features, onehot) + 0.5 * reference.kl(features, onehot)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_bfloat16_features_are_summed_in_float32():
    rng = np.random.default_rng(4)
    features = jnp.asarray(rng.uniform(1, 2, size=(4096, 8)), jnp.bfloat16)
    onehot = np.eye(2)[rng.integers(0, 2, 4096)]
    expected = reference.gini(np.asarray(features, np.float64), onehot)
    np.testing.assert_allclose(losses.gini_loss(features, onehot), expected, rtol=1e-5)


# ------------------------------------------------------------- accumulation and running sums


def _network(params, x):
    return jax.nn.relu(jax.nn.tanh(x @ params["a"]) @ params["b"])


def test_eight_microbatches_of_16_give_the_gradient_of_one_batch_of_128():
    rng = np.random.default_rng(5)
    params = {
        "a": jnp.asarray(rng.normal(size=(10, 32)) / 3, jnp.float32),
        "b": jnp.asarray(rng.normal(size=(32, 24)) / 5, jnp.float32),
    }
    x = jnp.asarray(rng.normal(size=(128, 10)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 10, 128))

    @jax.jit
    def sums(params, x, y):
        return {"hidden": losses.class_sums(_network(params, x), y, num_classes=10)}

    def loss_of_sums(sums):
        return losses.discriminability_loss(sums)[0]

    whole = jax.jit(jax.value_and_grad(lambda p: loss_of_sums(sums(p, x, y))))(params)
    parts = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 128, 16)]
    total = sums(params, *parts[0])
    for part in parts[1:]:
        total = jax.tree.map(jnp.add, total, sums(params, *part))
    value, linearized = losses.linearize_at(loss_of_sums, total)
    gradient = jax.tree.map(jnp.zeros_like, params)
    of_part = jax.jit(jax.grad(lambda p, x, y: linearized(sums(p, x, y))))
    for part in parts:
        more = of_part(params, *part)
        gradient = jax.tree.map(jnp.add, gradient, more)
    np.testing.assert_allclose(value, whole[0], rtol=1e-6)
    for name in params:
        np.testing.assert_allclose(gradient[name], whole[1][name], atol=1e-6)


def test_running_sums_are_the_bias_corrected_moving_average():
    rng = np.random.default_rng(6)
    shapes = losses.ClassSums(jnp.zeros((3, 4)), jnp.zeros(4))
    state = losses.RunningSums.zeros_like(shapes)
    seen, decay = [], 0.8
    for step in range(5):
        features, labels = rng.normal(size=(8, 3)), rng.integers(0, 4, 8)
        batch = losses.class_sums(features, jnp.asarray(labels), num_classes=4)
        seen.append(np.asarray(batch.activation, np.float64))
        blended, state = state.update(batch, decay)
        weights = (1 - decay) * decay ** np.arange(step, -1, -1.0)
        expected = np.tensordot(weights, seen, 1) / weights.sum()
        np.testing.assert_allclose(blended.activation, expected, rtol=1e-5)


def test_the_history_of_running_sums_carries_no_gradient():
    features, onehot = jnp.ones((4, 3)), jnp.eye(4)

    def blended_mass(scale):
        first = losses.class_sums(features * scale, onehot)
        _, state = losses.RunningSums.zeros_like(first).update(first, 0.5)
        second = losses.class_sums(features, onehot)
        return state.update(second, 0.5)[0].activation.sum()

    assert jax.grad(blended_mass)(1.0) == 0.0
