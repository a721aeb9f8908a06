"""Supervised contrastive loss: an example and those of its class against all others."""

from typing import Literal

import jax
import jax.numpy as jnp

from gini_jax.config.registry import Positive
from gini_jax.losses.pairs import Rows, cosine, masked_logsumexp, mean_over_anchors
from gini_jax.losses.rules import AxisName, bounded


@bounded
def supcon_loss(
    features: jax.Array,
    labels: jax.Array,
    *,
    temperature: Positive = 0.1,
    average: Literal["outside", "inside"] = "outside",
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
    chunk_size: int | None = None,
) -> jax.Array:
    """Supervised contrastive loss, over the pairs of the global batch.

    With cosines `s` divided by the temperature, `P(i)` the other examples of the anchor's class and
    `Z(i) = sum over a != i of exp s[i,a]`:

    `outside = mean_i mean over p in P(i) of -log(exp s[i,p] / Z(i))`, the paper's choice, and
    `inside = mean_i -log(mean over p in P(i) of exp s[i,p] / Z(i))`.

    Args:
        features: `[N, ..., C]` activations of any float type; their mean over spatial or token axes
            is taken.
        labels: `[N]` integers, or `[N, K]` rows, which count as their largest class. A negative
            integer leaves the example out.
        temperature: what cosines are divided by.
        average: whether positives are averaged outside or inside of the logarithm.
        where: `[N]` mask, or weights of the anchors; 1 by default. Rows of weight 0 are left out
            altogether, and may hold NaN.
        axis_name: name or names of mapped axes that the batch is divided over; the pairs are those
            of the global batch.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.
        chunk_size: anchors at a time: memory is `O(chunk_size N)`; all at once by default.

    Returns:
        Scalar: the mean over the anchors that have a positive; 0 if none has.

    Raises:
        ValueError: the shapes do not fit, labels are invalid, or a setting is out of bounds.
        TypeError: the features are not floating-point.

    References:
        Khosla et al., "Supervised contrastive learning", 2020 (arXiv 2004.11362), equations 2 and
        3.

    Examples:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> loss = supcon_loss(x, jnp.array([0, 0, 1, 1]), temperature=1.0)
        >>> print(f"{loss:.4f}")  # log(1 + 2 / e)
        0.5514
    """

    def of_rows(rows: Rows) -> tuple[jax.Array, jax.Array]:
        s = rows.values / temperature
        count = rows.positive.sum(axis=1).astype(s.dtype)
        safe = jnp.maximum(count, 1.0)
        log_z = masked_logsumexp(s, rows.positive | rows.negative)
        if average == "outside":
            of_positives = jnp.where(rows.positive, s, 0.0).sum(axis=1) / safe
        else:
            of_positives = masked_logsumexp(s, rows.positive) - jnp.log(safe)
        return log_z - of_positives, (count > 0).astype(s.dtype)

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
