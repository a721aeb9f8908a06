"""Supervised contrastive loss: an example and those of its class against all others."""

from typing import Literal

import jax
import jax.numpy as jnp

from gini_jax.config.registry import Positive
from gini_jax.losses.over_pairs import over_pairs
from gini_jax.losses.pairs import Compare, Precision, RowLoss, Rows, cosine_at, masked_logsumexp


@over_pairs
def supcon_loss(
    *,
    temperature: Positive = 0.1,
    average: Literal["outside", "inside"] = "outside",
    precision: Precision = "highest",
) -> tuple[RowLoss, Compare]:
    """Supervised contrastive loss, over the pairs of the global batch.

    With cosines `s` divided by the temperature, `P(i)` the other examples of the anchor's class and
    `Z(i) = sum over a != i of exp s[i,a]`:

    `outside = mean_i mean over p in P(i) of -log(exp s[i,p] / Z(i))`, the paper's choice, and
    `inside = mean_i -log(mean over p in P(i) of exp s[i,p] / Z(i))`.

    Args:
        temperature: what cosines are divided by.
        average: whether positives are averaged outside or inside of the logarithm.
        precision: of the products, on TPUs and GPUs.

    Returns:
        Scalar: the mean over the anchors that have a positive; 0 if none has.

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

    return of_rows, cosine_at(precision)
