"""Renyi entropy of class profiles: this project's own impurity, not the paper's."""

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.class_sums import ClassSums, class_sums
from gini_jax.losses.discriminability import class_means
from gini_jax.losses.from_sums import on_features


@on_features(ClassSums, class_sums)
def renyi_loss(sums: ClassSums) -> jax.Array:
    """Renyi entropy of order 2 of the features' class profiles, averaged over the features.

    `renyi = mean_c -log sum_k p[c,k]^2`, with `p` from `class_profile`, each row divided by its own
    sum. With `v` the squared coefficient of variation of a feature's class means it is
    `log K - log(1 + v)`.

    A variant of the Gini term for many classes; this project's, not the paper's. Its gradient with
    respect to the relative class means, `2 sqrt(v / (1 + v))`, does not depend on `K`, while that
    of Gini, `2 sqrt(v (1 + v)) / K`, vanishes for many classes.

    Returns:
        Scalar in `[0, log K]`, in nats: 0 for features of one class each, `log K` for flat
        profiles. A dead feature counts as `log K`, with zero gradient.

    References:
        A. Renyi, "On measures of entropy and information", 1961: the entropy of order 2.

    Examples:
        >>> import jax.numpy as jnp
        >>> features = jnp.array([[1.0, 1.0], [0.0, 1.0]])  # one pure feature, one flat
        >>> print(f"{renyi_loss(features, jnp.eye(2)):.4f}")  # half of log 2
        0.3466
    """
    # An absent class gets no gradient: its inverse mass would make it exceed float32's range.
    means = jnp.where(sums.mass[:, None] > 0, class_means(sums), 0.0)  # [K, C]
    largest = lax.stop_gradient(means.max(axis=0, keepdims=True))
    alive = ~(largest <= jnp.finfo(means.dtype).tiny)  # [1, C]; NaN is no dead feature
    # Rescaled to at most 1, so that neither value nor gradient squares what is tiny or huge.
    scaled = jnp.where(alive, means * (1 / jnp.where(alive, largest, 1.0)), 1.0)
    profiles = scaled / scaled.sum(axis=0, keepdims=True)
    collisions = jnp.square(profiles).sum(axis=0, keepdims=True)  # sum_k p[c,k]^2
    flat = jnp.full_like(collisions, 1.0 / sums.mass.shape[0])
    return -jnp.log(jnp.where(alive, collisions, flat)).mean()
