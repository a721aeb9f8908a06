"""Multi-similarity loss: pairs weighted by how hard they are."""

import jax
import jax.numpy as jnp

from gini_jax.config.registry import Positive
from gini_jax.losses.pairs import Rows, cosine, masked_logsumexp, mean_over_anchors
from gini_jax.losses.rules import AxisName, Finite, bounded


@bounded
def multi_similarity_loss(
    features: jax.Array,
    labels: jax.Array,
    *,
    alpha: Positive = 2.0,
    beta: Positive = 50.0,
    base: Finite = 0.5,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
    chunk_size: int | None = None,
) -> jax.Array:
    """Multi-similarity loss, over the pairs of the global batch.

    `mean_i [1/alpha log(1 + sum over positives of exp(-alpha (s[i,p] - base)))
    + 1/beta log(1 + sum over negatives of exp(beta (s[i,n] - base)))]`, with cosines `s`. All
    pairs enter; the paper's mining is left out.

    Args:
        features: `[N, ..., C]` activations of any float type; their mean over spatial or token axes
            is taken.
        labels: `[N]` integers, or `[N, K]` rows, which count as their largest class. A negative
            integer leaves the example out.
        alpha: how much a less similar positive outweighs the others.
        beta: how much a more similar negative outweighs the others.
        base: the cosine that positives shall exceed and negatives shall not.
        where: `[N]` mask, or weights of the anchors; 1 by default. Rows of weight 0 are left out
            altogether, and may hold NaN.
        axis_name: name or names of mapped axes that the batch is divided over; the pairs are those
            of the global batch.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.
        chunk_size: anchors at a time: memory is `O(chunk_size N)`; all at once by default.

    Returns:
        Scalar, not negative: the mean over the anchors that have a pair.

    Raises:
        ValueError: the shapes do not fit, labels are invalid, or a setting is out of bounds.
        TypeError: the features are not floating-point.

    References:
        Wang, Han, Huang, Dong, Scott, "Multi-similarity loss with general pair weighting for deep
        metric learning", 2019 (arXiv 1904.06627), equation 15.

    Examples:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0]])
        >>> loss = multi_similarity_loss(x, jnp.array([0, 0]))
        >>> print(f"{loss:.4f}")  # log(1 + 1 / e) / 2
        0.1566
    """

    def of_rows(rows: Rows) -> tuple[jax.Array, jax.Array]:
        s = rows.values - base
        near = jnp.logaddexp(0.0, masked_logsumexp(-alpha * s, rows.positive)) / alpha
        far = jnp.logaddexp(0.0, masked_logsumexp(beta * s, rows.negative)) / beta
        return near + far, (rows.positive | rows.negative).any(axis=1).astype(s.dtype)

    return mean_over_anchors(
        of_rows,
        cosine,
        features,
        labels,
        where=where,
        axis_name=axis_name,
        axis=axis,
        chunk_size=chunk_size,
    )
