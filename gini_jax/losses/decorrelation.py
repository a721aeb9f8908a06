"""Feature decorrelation: no two features of a layer say the same."""

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.class_sums import ratio
from gini_jax.losses.covariance import SecondMoments, second_moments
from gini_jax.losses.from_sums import on_features


@on_features(SecondMoments, second_moments, needs_labels=False)
def decorrelation_loss(moments: SecondMoments) -> jax.Array:
    """Mean squared correlation of two features.

    `decorrelation = mean_{c != d} r[c,d]^2`, with Pearson's correlations `r` over the batch. Unlike
    the covariances of `vcreg_loss`, it does not change if a feature is scaled.

    Returns:
        Scalar in `[0, 1]`: 1 if all features are multiples of one. A feature that does not vary,
        by more than rounding, has correlation 0, with zero gradient.

    References:
        Shi, Liang, Zhang, Tan, Bai, "Towards understanding and mitigating dimensional collapse in
        heterogeneous federated learning", 2022 (arXiv 2210.00226), equation 5: the squared
        Frobenius norm of the matrix of correlations over `C^2`. It counts the `C` ones of the
        diagonal, which are constant; this mean leaves them out.

    Examples:
        >>> import jax.numpy as jnp
        >>> round(float(decorrelation_loss(jnp.array([[0.0, 3.0], [1.0, 5.0], [2.0, 7.0]]))), 5)
        1.0
        >>> float(decorrelation_loss(jnp.array([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]])))
        0.0
    """
    covariance = moments.covariance
    variance = jnp.diagonal(covariance)
    square = ratio(jnp.diagonal(moments.product), moments.mass)
    varies = (variance > 1e-6 * lax.stop_gradient(square)) & (variance > 1e-30)
    scale = jnp.where(varies, lax.rsqrt(jnp.where(varies, variance, 1.0)), 0.0)
    correlation = scale[:, None] * covariance * scale[None, :]
    pairs = max(len(variance) * (len(variance) - 1), 1)
    off = jnp.where(jnp.eye(len(variance), dtype=bool), 0.0, correlation)
    found = jnp.square(off).sum() / pairs
    return jnp.where(jnp.isnan(variance).any(), variance.sum(), found)
