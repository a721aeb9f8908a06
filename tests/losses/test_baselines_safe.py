"""The losses beside the paper's on odd, masked and wrong input, and in strict modes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gini_jax import losses
from tests.helpers import baselines
from tests.helpers.baselines import (
    COMPARATOR,
    LOGIT_LOSSES,
    LOSSES,
    MIX,
    PAIRS,
    PROJECTION,
    PROXIES,
    SUPERCLASSES,
    C,
    K,
    all_losses,
    close,
    own_losses,
    value_and_gradient,
)


@pytest.fixture(scope="module", name="batch")
def _batch():
    return baselines.batch()


SIX = np.random.default_rng(5).normal(size=(6, C))
DEGENERATE = {
    "one class": (SIX, np.zeros(6, int), np.ones(6)),
    "identical": (np.ones((6, C)), np.array([0, 1, 2, 0, 1, 2]), np.ones(6)),
    "all 0": (np.zeros((6, C)), np.array([0, 1, 2, 0, 1, 2]), np.ones(6)),
    "one example": (SIX, np.array([0, 1, 2, 0, 1, 2]), np.eye(6)[0]),
    "no pair of a class": (SIX, np.array([0, 1, 2, 3, 4, 0]), np.array([1, 1, 1, 1, 1, 0])),
    "tiny": (SIX * 1e-16, np.array([0, 1, 2, 0, 1, 2]), np.ones(6)),
    "large": (SIX * 1e6, np.array([0, 1, 2, 0, 1, 2]), np.ones(6)),
    "nothing": (SIX, np.array([0, 1, 2, 0, 1, 2]), np.zeros(6)),
}


def test_value_and_gradient_are_finite():
    step = jax.jit(all_losses)
    for case, (features, labels, where) in DEGENERATE.items():
        batch = jnp.asarray(features, jnp.float32), jnp.asarray(labels), jnp.asarray(where, "f4")
        for name, (value, gradient) in step(*batch).items():
            assert np.isfinite(value), (case, name)
            assert np.isfinite(gradient).all(), (case, name)
            if case == "nothing":
                assert value == 0 or name == "proxy anchor"
                np.testing.assert_array_equal(gradient, 0)


def test_a_batch_without_examples_adds_nothing():
    empty = jnp.zeros((0, C)), jnp.zeros(0, int)
    for name, (value, gradient) in jax.jit(all_losses)(*empty).items():
        assert np.isfinite(value), name
        assert value == 0 or name == "proxy anchor"
        assert gradient.shape == (0, C)


@pytest.mark.slow
def test_rows_of_weight_0_may_hold_nan_and_change_nothing(batch):
    """Those on logits get the NaN in the logits: the projection here is not part of the loss."""
    features, labels = batch
    mask = jnp.arange(16) < 11
    found = jax.jit(all_losses)(features.at[11:].set(jnp.nan), labels, mask)
    expected = jax.jit(all_losses)(features[:11], labels[:11])
    for name in LOSSES:
        np.testing.assert_allclose(found[name][0], expected[name][0], rtol=1e-5)
        np.testing.assert_allclose(found[name][1][:11], expected[name][1], rtol=1e-4, atol=1e-6)
        if name not in LOGIT_LOSSES:
            np.testing.assert_array_equal(found[name][1][11:], 0)
    logits = jnp.zeros((16, K)).at[11:].set(jnp.nan)
    for loss in LOGIT_LOSSES.values():
        assert np.isfinite(jax.grad(loss)(logits, labels, where=mask)).all()


def test_a_negative_integer_leaves_an_example_out_of_the_pairs(batch):
    features, labels = batch
    of_images = ("nt-xent", "simclr")
    names = [name for name in PAIRS if name not in of_images]

    def step(features, labels):
        return {name: value_and_gradient(name, features, labels) for name in names}

    found = jax.jit(step)(features, labels.at[11:].set(-1))
    expected = jax.jit(step)(features[:11], labels[:11])
    for name in names:
        np.testing.assert_allclose(found[name][0], expected[name][0], rtol=1e-5)
        np.testing.assert_array_equal(found[name][1][11:], 0)


@pytest.mark.slow
def test_one_hot_rows_equal_integers_and_the_feature_axis_may_be_any(batch):
    features, labels = batch
    expected = jax.jit(all_losses)(features, labels)
    found = jax.jit(all_losses)(features, jnp.eye(K)[labels])
    close(found, expected, rtol=1e-5)
    moved = {name: partial(value_and_gradient, name, axis=1) for name in LOSSES}
    step = jax.jit(lambda x, y: {name: f(x, y) for name, f in moved.items()})
    for name, (value, gradient) in step(jnp.moveaxis(features, -1, 1), labels).items():
        close((value, jnp.moveaxis(gradient, 1, -1)), expected[name], rtol=1e-5)


STRICT = {
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_debug_nans": True,
    "jax_enable_x64": True,
}


@pytest.mark.slow
def test_strict_modes(batch):
    features, labels = batch[0].mean(axis=(1, 2)), batch[1]
    arrays = features, jnp.tanh(features @ MIX), labels, jnp.arange(16) < 10
    expected = jax.jit(own_losses)(*arrays)
    before = {mode: getattr(jax.config, mode) for mode in STRICT}
    try:
        for mode, on in STRICT.items():
            jax.config.update(mode, on)
        found = jax.jit(lambda *arrays: own_losses(*arrays))(*arrays)
    finally:
        for mode, was in before.items():
            jax.config.update(mode, was)
    close(found, expected, rtol=1e-5, atol=1e-6)


def test_margins_of_0_and_a_flat_hierarchy_are_cross_entropy(batch):
    logits = jnp.tanh(batch[0].mean(axis=(1, 2)) @ MIX)
    labels = batch[1]
    ce = optax.softmax_cross_entropy_with_integer_labels(10 * logits, labels).mean()
    for loss in (losses.cosface_loss, losses.arcface_loss):
        np.testing.assert_allclose(loss(logits, labels, scale=10.0, margin=0.0), ce, rtol=1e-5)
    hierarchy = losses.hierarchy_loss(10 * logits, labels, SUPERCLASSES)
    np.testing.assert_allclose(hierarchy, ce, rtol=1e-5)


def test_arcface_falls_on_beyond_its_last_angle():
    """Their line beyond `pi - margin` keeps the loss falling as the cosine rises from -1 to 1."""
    cosines = jnp.linspace(-1, 1, 201)[:, None] * jnp.array([[1.0, 0.0]])
    each = jax.vmap(lambda row: losses.arcface_loss(row[None], jnp.array([0]), scale=4.0))(cosines)
    assert (np.diff(each) < 1e-6).all()


WRONG = {
    "chunk_size=0": lambda x, y: losses.supcon_loss(x, y, chunk_size=0),
    "temperature=0": lambda x, y: losses.supcon_loss(x, y, temperature=0.0),
    "average='middle'": lambda x, y: losses.supcon_loss(x, y, average="middle"),
    "triplets='easy'": lambda x, y: losses.triplet_loss(x, y, triplets="easy"),
    "distance='l1'": lambda x, y: losses.triplet_loss(x, y, distance="l1"),
    "alpha=0": lambda x, y: losses.multi_similarity_loss(x, y, alpha=0.0),
    "labels have shape": lambda x, y: losses.supcon_loss(x, y[:3]),
    "labels are missing": lambda x, y: losses.center_loss(x),
    "given together with FeatureMoments": lambda x, y: losses.fisher_loss(
        losses.feature_moments(x, y, num_classes=K), y
    ),
    "the views have shapes": lambda x, y: losses.nt_xent_loss(x, x[:3]),
    "scale=0": lambda x, y: losses.cosface_loss(x, y, scale=0.0),
    "superclasses have shape": lambda x, y: losses.hierarchy_loss(x, y, [0, 1]),
    "do not fit; proxies": lambda x, y: losses.proxy_anchor_loss(x, y, PROXIES[:, :2]),
    "odd number of rows": lambda x, y: losses.simclr_loss(x[:3], None, PROJECTION),
    "the projection is for": lambda x, y: losses.simclr_loss(x[:, :3], None, PROJECTION),
    "the comparator is for": lambda x, y: losses.relation_loss(
        x[:, :3], y, COMPARATOR, num_classes=K
    ),
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_input_is_refused(text, batch):
    with pytest.raises(ValueError, match=text):
        WRONG[text](batch[0].mean(axis=(1, 2)), batch[1])
