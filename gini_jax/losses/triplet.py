"""Triplet loss: an anchor nearer to its class than to the others, by a margin."""

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from gini_jax.config.registry import NotNegative
from gini_jax.losses.over_pairs import over_pairs
from gini_jax.losses.pairs import (
    Compare,
    Precision,
    RowLoss,
    Rows,
    distance,
    far,
    squared_distance,
)

Sums: TypeAlias = tuple[jax.Array, jax.Array]
DISTANCES: dict[str, Callable[..., jax.Array]] = {
    "euclidean": distance,
    "squared": squared_distance,
}


@over_pairs
def triplet_loss(
    *,
    margin: NotNegative = 0.2,
    triplets: Literal["hard", "all", "semi-hard"] = "hard",
    distance: Literal["euclidean", "squared"] | Compare = "euclidean",
    precision: Precision = "highest",
) -> tuple[RowLoss, Compare]:
    """Triplet loss, over the triplets of the global batch.

    The mean of `max(d[a,p] - d[a,n] + margin, 0)` for an anchor `a`, another example `p` of its
    class and an example `n` of another class:

    - `hard`: for each anchor its farthest positive and its nearest negative;
    - `all`: all triplets with a loss above 0;
    - `semi-hard`: for each anchor and positive the nearest negative that is farther than the
      positive; if there is none, the farthest negative.

    Args:
        margin: by how much negatives shall be farther.
        triplets: which triplets count.
        distance: `"euclidean"`, its square, or a function from `[n, C]` and `[N, C]` to `[n, N]`.
        precision: of the products in the gradient, on TPUs and GPUs; distances themselves are sums
            of squared differences.

    Returns:
        Scalar, not negative; 0 if no anchor has both a positive and a negative. Squared distances
        leave the range of float32 where features are above about 1e18.

    References:
        Hermans, Beyer, Leibe, "In defense of the triplet loss for person re-identification", 2017
        (arXiv 1703.07737), equation 5 for `hard`, 6 and section 2 for `all`; Schroff, Kalenichenko,
        Philbin, "FaceNet", 2015 (arXiv 1503.03832), section 3.2 for `semi-hard`.

    Examples:
        >>> import jax.numpy as jnp
        >>> x, labels = jnp.array([[0.0], [1.0], [3.0]]), jnp.array([0, 0, 1])
        >>> float(triplet_loss(x, labels, margin=2.0))  # (1 - 3 + 2 + 1 - 2 + 2) / 2
        0.5
    """
    if not callable(distance):
        distance = partial(DISTANCES[distance], precision=precision)
    return TRIPLETS[triplets](margin), distance


def _hard(margin: float) -> RowLoss:
    def of_rows(rows: Rows) -> Sums:
        farthest = jnp.where(rows.positive, rows.values, -far(rows.values)).max(axis=1)
        nearest = jnp.where(rows.negative, rows.values, far(rows.values)).min(axis=1)
        both = rows.positive.any(axis=1) & rows.negative.any(axis=1)
        return jnp.maximum(farthest - nearest + margin, 0.0), both.astype(rows.values.dtype)

    return of_rows


def _semi_hard(margin: float) -> RowLoss:
    def of_row(d: jax.Array, positive: jax.Array, negative: jax.Array) -> Sums:
        negatives = jnp.sort(jnp.where(negative, d, far(d)))
        farther = jnp.searchsorted(negatives, d, side="right")
        count = negative.sum().astype(farther.dtype)
        chosen = negatives[jnp.minimum(farther, jnp.maximum(count - 1, 0))]
        counted = positive & (count > 0)
        losses = jnp.where(counted, jnp.maximum(d - chosen + margin, 0.0), 0.0)
        return losses.sum(), counted.sum().astype(d.dtype)

    return lambda rows: jax.vmap(of_row)(*rows)


def _all(margin: float) -> RowLoss:
    """The `O(N^2)` triplets of an anchor in `O(N log N)`, by running sums of sorted negatives."""

    def of_row(d: jax.Array, positive: jax.Array, negative: jax.Array) -> Sums:
        d = d - jax.lax.stop_gradient(d.mean())  # so that the running sums stay small
        negatives = jnp.sort(jnp.where(negative, d, far(d)))
        kept = jnp.where(negatives < far(d), negatives, 0.0)
        sums = jnp.concatenate([jnp.zeros(1, d.dtype), jnp.cumsum(kept)])
        active = jnp.searchsorted(negatives, d + margin, side="left")  # negatives with a loss
        active = jnp.where(positive, active, 0)
        losses = active.astype(d.dtype) * (d + margin) - sums[active]
        return losses.sum(), active.sum().astype(d.dtype)

    return lambda rows: jax.vmap(of_row)(*rows)


TRIPLETS = {"hard": _hard, "all": _all, "semi-hard": _semi_hard}
