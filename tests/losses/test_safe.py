"""Finite for every finite input, and one clear error at trace time for every wrong one."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gini_jax import losses

RNG = np.random.default_rng(0)
ONEHOT = np.eye(4)[[0, 1, 2, 3, 0, 1]]
BASE = RNG.normal(size=(6, 3, 3, 5))
EXTREMES = {
    "zeros": (np.zeros((6, 5)), ONEHOT, None),
    "one example": (BASE[:1], ONEHOT[:1], None),
    "one class": (BASE, np.eye(4)[[2] * 6], None),
    "classes absent": (BASE, np.eye(4)[[0, 1, 0, 1, 0, 1]], None),
    "all masked out": (BASE, ONEHOT, np.zeros(6)),
    "dead features": (BASE * [1, 0, 1, 0, 1], ONEHOT, None),
    "negative": (-np.abs(BASE), ONEHOT, None),
    "huge": (BASE * 1e30 / np.abs(BASE).max(), ONEHOT, None),
    "one huge": (np.concatenate([BASE[:5], BASE[5:] * 1e30 / np.abs(BASE).max()]), ONEHOT, None),
    "tiny": (BASE * 1e-30, ONEHOT, None),
    "a class dead": (BASE * (ONEHOT[:, 2] == 0)[:, None, None, None], ONEHOT, None),
}
LOSSES = [losses.gini_loss, losses.kl_loss, losses.entropy_loss]


@pytest.mark.parametrize("labels", ["rows", "integers"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradient_are_finite(loss, case, dtype, labels):
    features, onehot, where = EXTREMES[case]
    if dtype == "float16":
        features = np.clip(features, -60000, 60000)
    features = jnp.asarray(features, dtype)
    target = (
        {"labels": jnp.asarray(onehot, jnp.float32)}
        if labels == "rows"
        else {"labels": jnp.asarray(onehot.argmax(1)), "num_classes": 4}
    )
    value, gradient = jax.value_and_grad(loss)(features, where=where, **target)
    assert value.dtype == jnp.float32
    assert np.isfinite(value)
    assert gradient.dtype == features.dtype
    if dtype != "float16":
        assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_a_target_that_is_known_under_jit_is_used_and_checked():
    """As a constant of a training step: the data set's own shares."""
    features = jnp.asarray(BASE, jnp.float32)
    share = jnp.asarray([0.4, 0.3, 0.2, 0.1])

    def step(target):
        return jax.jit(lambda x: losses.kl_loss(x, jnp.asarray(ONEHOT), target=target))(features)

    outside = losses.kl_loss(features, jnp.asarray(ONEHOT), target=share)
    np.testing.assert_allclose(step(share), outside, rtol=1e-6)
    with pytest.raises(ValueError, match="sum 1"):
        step(2 * share)


def test_the_gradient_of_huge_activations_is_that_of_the_scaled_ones():
    """gini(s A) = gini(A), so the gradient at s A is that at A, divided by s."""
    a = jnp.asarray(np.abs(BASE), jnp.float32)
    onehot = jnp.asarray(ONEHOT, jnp.float32)
    plain = jax.grad(losses.gini_loss)(a, onehot)
    huge = jax.grad(losses.gini_loss)(a * 1e28, onehot)
    np.testing.assert_allclose(huge * 1e28, plain, rtol=1e-3, atol=1e-6)


F = jnp.ones((6, 2, 2, 5))
WRONG = {
    "integers without num_classes": (lambda: losses.gini_loss(F, jnp.zeros(6, int)), "num_classes"),
    "batch sizes differ": (lambda: losses.gini_loss(F, jnp.ones((5, 4))), r"\(6, 2, 2, 5\).*5"),
    "labels of three axes": (lambda: losses.kl_loss(F, jnp.ones((6, 1, 4))), r"\(6, 1, 4\)"),
    "float labels of one axis": (lambda: losses.kl_loss(F, jnp.ones(6), num_classes=4), "integers"),
    "num_classes disagrees": (lambda: losses.gini_loss(F, ONEHOT, num_classes=7), "num_classes=7"),
    "features of one axis": (lambda: losses.gini_loss(jnp.ones(6), ONEHOT), r"\[N, ..., C\]"),
    "where of another shape": (lambda: losses.gini_loss(F, ONEHOT, where=jnp.ones(5)), "where"),
    "target of another shape": (
        lambda: losses.kl_loss(F, ONEHOT, target=jnp.ones(3) / 3),
        "target",
    ),
    "target sums to 4": (lambda: losses.kl_loss(F, ONEHOT, target=jnp.ones(4)), "sum 1"),
    "target negative": (
        lambda: losses.kl_loss(F, ONEHOT, target=jnp.array([1.5, -0.5, 0, 0])),
        "non-negative",
    ),
    "weights for other layers": (
        lambda: losses.discriminability_loss({"a": F}, ONEHOT, kl_weight={"b": 1.0}),
        r"\['b'\].*\['a'\]",
    ),
    "three weights for two layers": (
        lambda: losses.discriminability_loss([F, F], ONEHOT, gini_weight=[1.0, 2.0, 3.0]),
        "one number, or one for each of the 2 layers",
    ),
    "no layer": (lambda: losses.discriminability_loss({}, ONEHOT), "no layer"),
    "unknown impurity": (lambda: losses.discriminability_loss(F, ONEHOT, impurity="x"), "'gini'"),
    "entropy of absolute sums": (
        lambda: losses.discriminability_loss(losses.class_sums(F, ONEHOT), impurity="entropy"),
        "signed_sums",
    ),
    "decay of 1": (
        lambda: losses.RunningSums.zeros_like(losses.class_sums(F, ONEHOT)).update(
            losses.class_sums(F, ONEHOT), 1.0
        ),
        r"\[0, 1\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused_with_its_shapes_and_the_rule(case):
    call, text = WRONG[case]
    with pytest.raises(ValueError, match=text):
        call()


def test_integer_features_are_refused():
    with pytest.raises(TypeError, match="floating-point"):
        losses.gini_loss(jnp.ones((6, 5), int), ONEHOT)


def test_importing_the_losses_loads_jax_and_nothing_heavier():
    code = (
        "import sys, jax, jax.numpy; before = set(sys.modules); import gini_jax.losses;"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["gini_jax"]
