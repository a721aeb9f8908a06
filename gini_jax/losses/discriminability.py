"""The paper's equations, each a loss of activations and labels.

S[c,k] = activation[c,k] / (mass[k] + eps)              class-mean activation of each feature
p[c,k] = S[c,k] / (sum_k S[c,k] + eps)                  class profile of feature c
gini   = mean_c (1 - sum_k p[c,k]^2)
q[k]   = (sum_c p[c,k] + eps) / (sum_ck p[c,k] + K eps)
kl     = sum_k t[k] (log t[k] - log q[k])
"""

from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gini_jax.losses.class_sums import EPS, ClassSums, class_sums, sum_type
from gini_jax.losses.from_sums import on_features
from gini_jax.losses.rules import AxisName, require

Target: TypeAlias = jax.Array | Literal["batch", "present"] | None


@on_features(ClassSums, class_sums)
def class_profile(sums: ClassSums) -> jax.Array:
    """How each feature's activation is spread over the classes.

    `S[c,k] = activation[c,k] / (mass[k] + eps)`, `p[c,k] = S[c,k] / (sum_k S[c,k] + eps)`.

    The division by the class's mass makes the profile independent of how many examples a class
    has. A class that is absent from the batch has a column of zeros, a dead feature a row of zeros.

    Returns:
        `[C, K]`; each row sums to 1, or to 0 for a dead feature.

    References:
        arXiv 2202.07073, section 3: the class distribution of a feature.

    Examples:
        >>> import jax.numpy as jnp
        >>> class_profile(jnp.array([[1.0], [3.0]]), jnp.eye(2)).tolist()
        [[0.25, 0.75]]
    """
    return scaled_profile(sums).whole()


def gini_impurity(profile: jax.Array) -> jax.Array:
    """Gini impurity of class profiles, `1 - sum_k p[c,k]^2`.

    Args:
        profile: `[..., K]`; each row sums to 1 (or to 0, which has impurity 1).

    Returns:
        `[...]` in `[0, 1]`: 0 for a feature that fires for one class alone, `1 - 1/K` for one that
        fires equally for all.

    References:
        arXiv 2202.07073, section 3.

    Examples:
        >>> import jax.numpy as jnp
        >>> gini_impurity(jnp.array([[1.0, 0.0], [0.5, 0.5]])).tolist()
        [0.0, 0.5]
    """
    return 1.0 - jnp.square(profile).sum(axis=-1)


@on_features(ClassSums, class_sums)
def gini_loss(sums: ClassSums) -> jax.Array:
    """Gini impurity of the features' class profiles, averaged over the features.

    `gini = mean_c (1 - sum_k p[c,k]^2)`, with `p` from `class_profile`.

    Returns:
        Scalar in `[0, 1]`; a dead feature counts as 1, with zero gradient.

    References:
        arXiv 2202.07073, section 3: the Gini impurity loss.

    Examples:
        >>> import jax.numpy as jnp
        >>> float(gini_loss(jnp.array([[1.0, 1.0], [0.0, 1.0]]), jnp.eye(2)))
        0.25
    """
    p = scaled_profile(sums)
    return (1.0 - p.sum_of_squares()).mean()


def class_distribution(
    labels: jax.Array,
    *,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
) -> jax.Array:
    """Share of each class in the batch, `t[k] = mass[k] / sum_k mass[k]`.

    Args:
        labels: `[N, K]` one-hot or soft rows, or `[N]` integers together with `num_classes`.
        num_classes: `K`; needed for integer labels only.
        where: `[N]` mask or example weights; 1 by default.
        axis_name: name or names of mapped axes to sum over.

    Returns:
        `[K]`, which sums to 1; all 0 if everything is masked out.

    Raises:
        ValueError: the shapes do not fit, or integer labels come without `num_classes`.

    Examples:
        >>> import jax.numpy as jnp
        >>> class_distribution(jnp.array([0, 0, 0, 1]), num_classes=2).tolist()
        [0.75, 0.25]
    """
    no_features = jnp.zeros((*(jnp.shape(labels)[:1] or (0,)), 1))
    sums = class_sums(
        no_features, labels, num_classes=num_classes, where=where, axis_name=axis_name
    )
    return _shares(sums.mass)


@on_features(ClassSums, class_sums)
def kl_loss(sums: ClassSums, *, target: Target = None) -> jax.Array:
    """Kullback-Leibler divergence of the features' class distribution from the classes' own.

    `q[k] = (sum_c p[c,k] + eps) / (sum_ck p[c,k] + K eps)`,
    `kl = sum_k t[k] (log t[k] - log q[k])`, with `p` from `class_profile`.

    This term keeps the Gini term from spending all features on few classes. Its gradient grows
    without bound as all features of a class in the batch die.

    The batch's shares follow the counts of its examples, while `q` comes from class means, which do
    not. With about as many classes as examples most of the term is then the sampling noise of the
    counts (docs/method.md); `"present"` is free of it.

    Args:
        target: the distribution `t`. None or `"batch"`, the paper's: the share of each class in the
            batch. `"present"`: uniform over the classes that the batch has. Or `[K]` numbers, such
            as the class shares of the whole data set.

    Returns:
        Scalar, not negative, in nats.

    References:
        arXiv 2202.07073, section 3: the KL divergence loss.

    Examples:
        >>> import jax.numpy as jnp
        >>> float(kl_loss(jnp.eye(2), jnp.eye(2)))  # one feature per class
        0.0
    """
    num_classes = sums.mass.shape[0]
    by_class = scaled_profile(sums).sum_over_features()
    q = (by_class + EPS) / (by_class.sum() + num_classes * EPS)
    t = _target_of(target, sums.mass)
    log_t = jnp.log(jnp.where(t > 0, t, jnp.ones_like(t)))  # 0 log 0 = 0, with a finite gradient
    return jnp.maximum((t * (log_t - jnp.log(q))).sum(), 0.0)


@on_features(ClassSums, partial(class_sums, signed=True))
def entropy_loss(sums: ClassSums) -> jax.Array:
    """Entropy alternative to the Gini term, kept for ablation.

    `p[c,k] = softmax_k(S[c,k])`, `entropy = -mean_c sum_k p[c,k] log10 p[c,k]`, where `S` averages
    the plain, not the absolute, activations.

    Returns:
        Scalar in `[0, log10 K]`.

    References:
        arXiv 2202.07073, the entropy-based alternative of the ablation study.

    Examples:
        >>> import jax.numpy as jnp
        >>> print(f"{entropy_loss(jnp.ones((2, 3)), jnp.eye(2)):.4f}")  # log10 of 2
        0.3010
    """
    # Without the clip, which changes no finite number, a compiler may fuse the product in the means
    # with the subtraction of their maximum; at 1e24 its rounding error makes exp overflow.
    limits = jnp.finfo(sums.activation.dtype)
    means = jnp.clip(class_means(sums), limits.min, limits.max)
    log_p = jax.nn.log_softmax(means, axis=0)
    return -(jnp.exp(log_p) * log_p).sum(axis=0).mean() / jnp.log(10.0).astype(log_p.dtype)


def _shares(mass: jax.Array) -> jax.Array:
    """`t[k] = mass[k] / sum_k mass[k]`, or all 0."""
    total = mass.sum()
    safe = jnp.where(total > 0, total, jnp.ones_like(total))
    return jnp.where(total > 0, mass / safe, jnp.zeros_like(mass))


def class_means(sums: ClassSums) -> jax.Array:
    """`S[c,k]`, transposed: `[K, C]`."""
    return sums.activation.T * (1.0 / (sums.mass + EPS))[:, None]


# How `p` is kept, for speed and range. Classes come first, `[K, C]`, as the segment sum leaves
# them: two transpositions in a row cost nothing, one costs a CPU as much as everything else. And
# `p` is a product of two factors, so that neither the square of a sum (1e60 for activations of
# 1e30) nor the profile itself is ever formed.


class ScaledProfile(NamedTuple):
    """`p[c,k] = scaled[k,c] * factor[c]`; the factor is 1 in value, but not in its gradient."""

    scaled: jax.Array  # [K, C]
    factor: jax.Array  # [C]

    def whole(self) -> jax.Array:
        """`p[c,k]`, `[C, K]`."""
        return (self.scaled * self.factor[None, :]).T

    def sum_of_squares(self) -> jax.Array:
        """`sum_k p[c,k]^2`, `[C]`."""
        return jnp.square(self.scaled).sum(axis=0) * jnp.square(self.factor)

    def sum_over_features(self) -> jax.Array:
        """`sum_c p[c,k]`, `[K]`."""
        return jnp.dot(self.scaled, self.factor, precision=lax.Precision.HIGHEST)


def scaled_profile(sums: ClassSums) -> ScaledProfile:
    """`p[c,k] = S[c,k] / (sum_k S[c,k] + eps)`, after a constant rescaling of each feature."""
    s = class_means(sums)
    constant = lax.stop_gradient(1.0 / (s.sum(axis=0) + EPS))
    scaled = s * constant[None, :]
    return ScaledProfile(scaled, 1.0 / (scaled.sum(axis=0) + EPS * constant))


def _target_of(target: Target, mass: jax.Array) -> jax.Array:
    if target is None or (isinstance(target, str) and target == "batch"):
        return _shares(mass)
    if isinstance(target, str):
        return _shares((mass > 0).astype(mass.dtype))
    return _checked_target(target, mass.shape[0])


def _checked_target(target: Any, num_classes: int) -> jax.Array:
    shape = jnp.shape(target)
    if shape != (num_classes,):
        raise ValueError(f"target has shape {shape}; it must be [K] = ({num_classes},)")
    if isinstance(target, jax.core.Tracer):
        require(
            "target is not a distribution: it must be non-negative, with sum 1 "
            "(divide it by its sum)",
            lambda target: (target >= 0).all() & (jnp.abs(target.sum() - 1) < 1e-3),
            target,
        )
    else:  # what is known under jit, too, is checked
        known = np.asarray(target, np.float64)
        if not ((known >= 0).all() and abs(known.sum() - 1.0) < 1e-3):
            raise ValueError(
                f"target sums to {known.sum():g} with minimum {known.min():g}; it must be a "
                "distribution: non-negative, with sum 1 (divide it by its sum)"
            )
    target = jnp.asarray(target)
    return target.astype(sum_type(target.dtype))
