"""Rate reduction (MCR2): features that fill space, each class in few dimensions of its own."""

import jax
import jax.numpy as jnp

from gini_jax.config.registry import Positive
from gini_jax.losses.class_sums import ratio
from gini_jax.losses.directions import DirectionProducts, direction_products
from gini_jax.losses.from_sums import on_features


@on_features(DirectionProducts, direction_products)
def rate_reduction_loss(products: DirectionProducts, eps: Positive = 0.5) -> jax.Array:
    """What coding all features together costs less than coding each class for itself; negated.

    With unit vectors `u`, `N` examples, `N[k]` of class `k`, and `Z[k] = sum_n Y[n,k] u u^T`,
    `R = 1/2 log det(I + C / (N eps) sum_k Z[k])`,
    `R[k] = N[k] / (2 N) log det(I + C / (N[k] eps) Z[k])`, `loss = sum_k R[k] - R`.

    The sums hold `K C^2` numbers, and a step factorises `K + 1` matrices `[C, C]`: it is for some
    hundred features and classes.

    Args:
        eps: the squared precision of the code, `eps^2` of the paper.

    Returns:
        Scalar, not positive, in nats: 0 for one class, or none.

    References:
        Yu, Chan, You, Song, Ma, "Learning diverse and discriminative representations via the
        principle of maximal coding rate reduction", 2020 (arXiv 2006.08558), equations 7 and 8.

    Examples:
        >>> import jax.numpy as jnp
        >>> x, labels = jnp.eye(2), jnp.array([0, 1])
        >>> loss = rate_reduction_loss(x, labels, num_classes=2, eps=1.0)
        >>> print(f"{loss:.4f}")  # log(3) / 2 - log(2)
        -0.1438
    """
    channels, dtype = products.product.shape[-1], products.product.dtype
    count = products.mass.sum()
    both = jnp.concatenate([products.product, products.product.sum(axis=0, keepdims=True)])
    counts = jnp.append(products.mass, count)
    scaled = (channels / eps) * both / jnp.where(counts > 0, counts, 1.0)[:, None, None]
    factors = jnp.linalg.cholesky(jnp.eye(channels, dtype=dtype)[None] + scaled)
    rates = jnp.log(jnp.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
    return ratio((products.mass * rates[:-1]).sum(), count) - rates[-1]
