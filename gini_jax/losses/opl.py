"""Orthogonal projection loss: one direction for a class, and right angles between classes."""

import jax
import jax.numpy as jnp

from gini_jax.config.registry import NotNegative
from gini_jax.losses.class_sums import ratio
from gini_jax.losses.directions import DirectionSums, direction_sums
from gini_jax.losses.from_sums import on_features


@on_features(DirectionSums, direction_sums)
def opl_loss(sums: DirectionSums, gamma: NotNegative = 0.5) -> jax.Array:
    """Orthogonal projection loss, over all pairs of the global batch, from sums alone.

    `opl = (1 - s) + gamma |d|`, with `s` the mean cosine of two examples of one class, and `d` that
    of two examples of different classes. With `S[k]` the sum of a class's unit vectors, the cosines
    of its pairs add to `|S[k]|^2` less its number of examples, and those of all pairs to
    `|sum_k S[k]|^2` less the batch size; so no table of pairs is needed.

    The authors publish two forms. One, in `loss.py`, has `d` for `|d|`, which is the same where
    different classes are at acute angles on average. The other, in `cifar/losses.py`, has the mean
    over the pairs of the absolute cosine, which is no function of sums over examples.

    Args:
        gamma: weight of the angles between classes.

    Returns:
        Scalar, not negative: 0 if each class has one direction, at right angles to the others. A
        part without pairs is 0. A pair's weight is the product of those of its examples. Sums
        that are blended with their history count the pairs of examples with themselves too often,
        which moves the value, but not the direction of the gradient.

    References:
        Ranasinghe, Naseer, Hayat, Khan, Khan, "Orthogonal projection loss", 2021 (arXiv
        2103.14021), equations 3 to 5.

    Examples:
        >>> import jax.numpy as jnp
        >>> x, labels = jnp.array([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]]), jnp.array([0, 0, 1])
        >>> float(opl_loss(x, labels, num_classes=2))
        0.0
        >>> float(opl_loss(x[:, :1] + x[:, 1:], labels, num_classes=2))  # all in one direction
        0.5
    """
    same = (jnp.square(sums.total).sum(axis=0) - sums.own).sum()
    same_pairs = (jnp.square(sums.mass) - sums.own).sum()
    every = jnp.square(sums.total.sum(axis=1)).sum() - sums.own_all
    every_pairs = jnp.square(sums.mass.sum()) - sums.own_all
    other_pairs = every_pairs - same_pairs
    s, d = ratio(same, same_pairs), ratio(every - same, other_pairs)
    # Counts of pairs below the rounding error of what they are differences of are none.
    some = same_pairs > 1e-6 * jnp.square(sums.mass).sum()
    others = other_pairs > 1e-6 * jnp.square(sums.mass.sum())
    together = jnp.where(some, 1 - s, jnp.zeros_like(s))
    return together + gamma * jnp.where(others, jnp.abs(d), jnp.zeros_like(d))
