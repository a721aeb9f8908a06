"""Multi-similarity loss: pairs weighted by how hard they are."""

import jax
import jax.numpy as jnp

from gini_jax.config.registry import NotNegative, Positive
from gini_jax.losses.over_pairs import over_pairs
from gini_jax.losses.pairs import Compare, Precision, RowLoss, Rows, cosine_at, masked_logsumexp
from gini_jax.losses.rules import Finite


@over_pairs
def multi_similarity_loss(
    *,
    alpha: Positive = 2.0,
    beta: Positive = 50.0,
    base: Finite = 0.5,
    mined: bool = False,
    epsilon: NotNegative = 0.1,
    precision: Precision = "highest",
) -> tuple[RowLoss, Compare]:
    """Multi-similarity loss, over the pairs of the global batch.

    `mean_i [1/alpha log(1 + sum over positives of exp(-alpha (s[i,p] - base)))
    + 1/beta log(1 + sum over negatives of exp(beta (s[i,n] - base)))]`, with cosines `s`. All
    pairs enter; with `mined`, the paper's mining takes the informative ones: a positive with
    `s[i,p] - epsilon` below the largest cosine of a negative, and a negative with
    `s[i,n] + epsilon` above the smallest cosine of a positive.

    Args:
        alpha: how much a less similar positive outweighs the others.
        beta: how much a more similar negative outweighs the others.
        base: the cosine that positives shall exceed and negatives shall not.
        mined: whether only informative pairs enter.
        epsilon: how far from informative a pair may be, with `mined`.
        precision: of the products, on TPUs and GPUs.

    Returns:
        Scalar, not negative: the mean over the anchors that have a pair.

    References:
        Wang, Han, Huang, Dong, Scott, "Multi-similarity loss with general pair weighting for deep
        metric learning", 2019 (arXiv 1904.06627), equation 15; equations 11 and 12 for the mining.

    Examples:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0]])
        >>> loss = multi_similarity_loss(x, jnp.array([0, 0]))
        >>> print(f"{loss:.4f}")  # log(1 + 1 / e) / 2
        0.1566
    """

    def of_rows(rows: Rows) -> tuple[jax.Array, jax.Array]:
        s, positive, negative = rows.values - base, rows.positive, rows.negative
        if mined:
            hardest = jnp.where(negative, s, -jnp.inf).max(axis=1, keepdims=True)
            farthest = jnp.where(positive, s, jnp.inf).min(axis=1, keepdims=True)
            positive &= s - epsilon < hardest
            negative &= s + epsilon > farthest
        near = jnp.logaddexp(0.0, masked_logsumexp(-alpha * s, positive)) / alpha
        far = jnp.logaddexp(0.0, masked_logsumexp(beta * s, negative)) / beta
        return near + far, (rows.positive | rows.negative).any(axis=1).astype(s.dtype)

    return of_rows, cosine_at(precision)
