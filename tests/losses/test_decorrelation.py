"""Losses of covariances, angles and monosemanticity: closed cases, weights, and the authors'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gini_jax import losses
from tests.helpers.baselines import LOSSES

RNG = np.random.default_rng(6)
X = RNG.normal(size=(12, 4))
LABELS = np.arange(12) % 3


def test_a_simplex_has_no_orthogonal_projection_loss_but_for_its_obtuse_angles():
    """Means at right angles: 0. A simplex of K classes: cosines of -1 / (K - 1) between classes."""
    assert losses.opl_loss(jnp.eye(3)[LABELS], LABELS, num_classes=3) == 0
    simplex = (np.eye(3) - 1 / 3)[LABELS]
    found = losses.opl_loss(jnp.asarray(simplex, jnp.float32), LABELS, num_classes=3, gamma=1.0)
    np.testing.assert_allclose(found, 0.5, rtol=1e-5)


@pytest.mark.parametrize("name", ["opl", "rate reduction", "vcreg", "decorrelation"])
def test_a_repeated_example_counts_as_its_weight_where_no_pair_matters(name):
    """Twice each example, or weights of 2: the same second moments, and about the same loss."""
    x = jnp.asarray(X, jnp.float32)
    twice = LOSSES[name](jnp.tile(x, (2, 1)), np.tile(LABELS, 2), num_classes=3)
    weighted = LOSSES[name](x, LABELS, num_classes=3, where=np.full(12, 2.0))
    alone = LOSSES[name](x, LABELS, num_classes=3)
    np.testing.assert_allclose(weighted, alone, rtol=1e-5)
    small = LOSSES[name](x, LABELS, num_classes=3, where=np.full(12, 1 / 20))
    np.testing.assert_allclose(small, alone, rtol=1e-5)
    if name == "opl":  # an example is in no pair with itself, but with its copy
        assert twice < weighted
    elif name != "vcreg":  # whose variances are over N - 1
        np.testing.assert_allclose(weighted, twice, rtol=1e-5)


def test_weights_are_those_of_pairs_in_the_orthogonal_projection_loss():
    w, units = RNG.random(12), X / np.linalg.norm(X, axis=1, keepdims=True)
    soft = RNG.dirichlet(np.ones(3), 12)
    same, other, same_mass, other_mass = 0.0, 0.0, 0.0, 0.0
    for i in range(12):
        for j in range(12):
            if i == j:
                continue
            together = w[i] * w[j] * soft[i] @ soft[j]
            apart = w[i] * w[j] - together
            same, other = same + together * units[i] @ units[j], other + apart * units[i] @ units[j]
            same_mass, other_mass = same_mass + together, other_mass + apart
    expected = 1 - same / same_mass + 0.5 * abs(other / other_mass)
    found = losses.opl_loss(jnp.asarray(X, jnp.float32), jnp.asarray(soft, jnp.float32), where=w)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_monosemanticity_by_label_is_gini_impurity_without_the_pairs_of_an_example_with_itself():
    """In a large batch of activations that reach 0, both agree."""
    x = np.abs(np.random.default_rng(0).normal(size=(4000, 3)))
    x[:3] = 0
    labels = np.random.default_rng(1).integers(0, 3, 4000)
    x *= np.eye(3)[labels] * 2 + 0.3
    mono = losses.monosemantic_loss(jnp.asarray(x, jnp.float32), labels, by="labels", num_classes=3)
    shares = np.stack([x[labels == k].sum(axis=0) for k in range(3)])
    shares /= shares.sum(axis=0)
    np.testing.assert_allclose(mono, (1 - (shares**2).sum(axis=0)).mean(), rtol=2e-3)
    balanced = losses.gini_loss(jnp.asarray(x, jnp.float32), labels, num_classes=3)
    np.testing.assert_allclose(mono, balanced, rtol=2e-2)  # whose shares are of class means


def test_embeddings_of_another_network_say_which_examples_resemble_each_other():
    x = jnp.asarray(X, jnp.float32)
    by_labels = losses.monosemantic_loss(x, LABELS, by="labels", num_classes=3)
    given = losses.monosemantic_loss(x, embeddings=3.0 * jnp.eye(3)[LABELS])
    np.testing.assert_allclose(given, by_labels, rtol=1e-6)
    gradient = jax.grad(lambda e: losses.monosemantic_loss(x, embeddings=e))(jnp.eye(12))
    assert (gradient == 0).all()
    for wrong in (jnp.eye(3), jnp.zeros(12)):
        with pytest.raises(ValueError, match=r"embeddings have shape .* they must be \[12, D\]"):
            losses.monosemantic_loss(x, embeddings=wrong)
    with pytest.raises(ValueError, match="by='labels' needs labels"):
        losses.monosemantic_loss(x, by="labels")


def test_identical_features_correlate_fully_and_constant_ones_not_at_all():
    column = RNG.normal(size=(20, 1))
    same = jnp.asarray(column * [1.0, -2.0, 30.0] + 5, jnp.float32)
    np.testing.assert_allclose(losses.decorrelation_loss(same), 1.0, rtol=1e-4)
    constant = jnp.concatenate([same[:, :1], jnp.full((20, 2), 0.1)], axis=1)
    value, gradient = jax.value_and_grad(losses.decorrelation_loss)(constant)
    assert value == 0 and (gradient == 0).all()


def test_variances_at_the_target_and_no_covariance_cost_nothing():
    x = jnp.asarray(np.concatenate([np.eye(4), -np.eye(4)]) * 2.0, jnp.float32)
    assert losses.vcreg_loss(x) == 0  # variances of 8 / 7
    assert losses.vcreg_loss(x, target=2.0) > 0


def test_a_single_pair_counts_in_a_large_batch():
    x = jnp.ones((1500, 2)).at[1].set(-1.0)
    labels = jnp.arange(1500).at[1].set(0)
    found = losses.opl_loss(x, labels, num_classes=1500, gamma=0.0)
    np.testing.assert_allclose(found, 2.0, rtol=1e-3)


@pytest.mark.parametrize("by", ["features", "labels"])
def test_nan_shows_and_a_nearly_constant_feature_has_a_finite_gradient(by):
    loss = lambda x: losses.monosemantic_loss(x, LABELS, by=by, num_classes=3)  # noqa: E731
    x = jnp.asarray(X, jnp.float32)
    assert np.isnan(loss(x.at[3, 1].set(jnp.nan)))
    for span in (1e-16, 1e-21, 1e-30):
        narrow = x.at[:, 0].set(span * jnp.arange(12.0))
        assert np.isfinite(jax.grad(loss)(narrow)).all()


def authors_opl(x, labels, gamma):
    """The orthogonal projection loss as its authors publish it, from its formula, in PyTorch."""
    import torch

    units = torch.nn.functional.normalize(x, dim=1)
    cosines, same = units @ units.T, labels[:, None] == labels[None]
    others = ~torch.eye(len(x), dtype=torch.bool)
    return 1 - cosines[same & others].mean() + gamma * cosines[~same].mean()


def test_opl_equals_the_authors_pairs_in_pytorch_where_classes_are_at_acute_angles():
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    positive = np.abs(X)
    x = torch.tensor(positive, requires_grad=True)
    expected = authors_opl(x, torch.tensor(LABELS), 0.5)
    expected.backward()
    value, gradient = jax.value_and_grad(losses.opl_loss)(
        jnp.asarray(positive, jnp.float32), LABELS, num_classes=3
    )
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_labels_are_not_needed_and_change_nothing():
    x = jnp.asarray(X, jnp.float32)
    for loss in (losses.vcreg_loss, losses.decorrelation_loss):
        assert loss(x) == loss(x, LABELS, num_classes=3) == loss(losses.second_moments(x))
    with pytest.raises(ValueError, match="labels are missing"):
        losses.opl_loss(x)
