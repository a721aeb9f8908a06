"""Variance-covariance regularisation: features that vary, and do not vary together."""

import jax
import jax.numpy as jnp

from gini_jax.config.registry import NotNegative, Positive
from gini_jax.losses.covariance import SecondMoments, second_moments
from gini_jax.losses.from_sums import on_features


@on_features(SecondMoments, second_moments, needs_labels=False)
def vcreg_loss(
    moments: SecondMoments,
    alpha: NotNegative = 1.0,
    beta: NotNegative = 1.0,
    target: Positive = 1.0,
) -> jax.Array:
    """Standard deviations below a target, and covariances of different features.

    With `V` the covariance matrix of the `C` features over the batch,
    `vcreg = alpha mean_c max(0, target - sqrt(V[c,c] + 1e-4)) + beta mean_{c != d} V[c,d]^2`.

    Args:
        alpha: weight of the standard deviations.
        beta: weight of the covariances.
        target: the standard deviation that a feature shall have at least.

    Returns:
        Scalar, not negative. 0, with zero gradient, for at most one example.

    References:
        Zhu, Evtimova, Chen, Shwartz-Ziv, LeCun, "Variance-covariance regularization improves
        representation learning", 2023 (arXiv 2306.13292), section 3; from Bardes, Ponce, LeCun,
        "VICReg", 2022 (arXiv 2105.04906), section 4, which divides the covariances by `C` instead
        of `C (C - 1)`.

    Examples:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[-1.0, -1.0], [1.0, 1.0]])  # variances and covariance are 2
        >>> float(vcreg_loss(x)), float(vcreg_loss(x, beta=0.5))
        (4.0, 2.0)
    """
    covariance = moments.covariance
    variance = jnp.diagonal(covariance)
    deviation = jnp.sqrt(jnp.maximum(variance, 0.0) + 1e-4)
    short = jnp.maximum(target - deviation, 0.0).mean()
    pairs = max(len(variance) * (len(variance) - 1), 1)
    apart = jnp.square(jnp.where(jnp.eye(len(variance), dtype=bool), 0.0, covariance)).sum() / pairs
    found = alpha * short + beta * apart
    return jnp.where(moments.several, found, jnp.zeros_like(found))
