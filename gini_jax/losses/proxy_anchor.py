"""Proxy-anchor loss: a learned vector per class attracts its examples and repels the others."""

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.config.registry import NotNegative, Positive
from gini_jax.losses.class_sums import label_rows, on_any_mesh, spatial_mean
from gini_jax.losses.pairs import cosine
from gini_jax.losses.rules import (
    AxisName,
    bounded,
    check_features,
    check_label_values,
    check_where,
    known_array,
)


@bounded
def proxy_anchor_loss(
    features: jax.Array,
    labels: jax.Array,
    proxies: jax.Array,
    *,
    alpha: Positive = 32.0,
    margin: NotNegative = 0.1,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
) -> jax.Array:
    """Proxy-anchor loss of the global batch, with one learned proxy per class.

    `mean over classes k of the batch of log(1 + sum over its examples of
    exp(-alpha (s[n,k] - margin)))
    + mean over all k of log(1 + sum over the other examples of exp(alpha (s[n,k] + margin)))`,
    with `s` the cosines of features and proxies. It is a function of sums over the examples.

    Args:
        features: `[N, ..., C]` activations of any float type; their mean over spatial or token axes
            is taken.
        labels: `[N]` integers, or `[N, K]` one-hot or soft rows.
        proxies: `[K, C]`, parameters to learn together with the network.
        alpha: how much harder examples outweigh others.
        margin: by how much the cosine shall exceed, or stay below, zero.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to sum over.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.

    Returns:
        Scalar, not negative.

    Raises:
        ValueError: the shapes do not fit, a setting is out of bounds, or labels whose values are
            known are invalid; see `checked`.
        TypeError: the features are not floating-point.

    References:
        Kim, Kim, Cho, Kwak, "Proxy anchor loss for deep metric learning", 2020 (arXiv 2003.13911),
        equation 4.

    Examples:
        >>> import jax.numpy as jnp
        >>> x = proxies = jnp.eye(2)
        >>> loss = proxy_anchor_loss(x, jnp.array([0, 1]), proxies, alpha=1.0, margin=0.0)
        >>> print(f"{loss:.4f}")  # log(1 + 1 / e) + log 2
        1.0064
    """
    features, proxies, labels = jnp.asarray(features), jnp.asarray(proxies), known_array(labels)
    axis = check_features(features, axis)
    channels, shape = features.shape[axis], labels.shape
    rows_or_integers = shape == (len(features), len(proxies)) or (
        shape == (len(features),) and jnp.issubdtype(labels.dtype, jnp.integer)
    )
    if proxies.ndim != 2 or proxies.shape[1] != channels or not rows_or_integers:
        raise ValueError(
            f"features of shape {features.shape}, proxies {proxies.shape} and labels {shape} do "
            f"not fit; proxies must be [K, {channels}], labels [{len(features)}] integers or "
            f"[{len(features)}, K] rows"
        )
    weights = check_where(where, labels)
    check_label_values(labels, len(proxies), weights)

    def loss(
        features: jax.Array, proxies: jax.Array, labels: jax.Array, weights: jax.Array | None
    ) -> jax.Array:
        x = spatial_mean(features, weights, axis, signed=True)
        rows, w = label_rows(labels, weights, len(proxies), x.dtype)
        s = cosine(x, proxies.astype(x.dtype))
        exponents = jnp.stack([-alpha * (s - margin), alpha * (s + margin)])  # [2, N, K]
        shares = w[None, :, None] * jnp.stack([rows, 1 - rows])
        log_sums, mass = _log_one_plus_sum(exponents, shares, axis_name)
        present = jnp.maximum((mass[0] > 0).sum().astype(x.dtype), 1.0)
        return log_sums[0].sum() / present + log_sums[1].mean()

    return on_any_mesh(loss, features, proxies, labels, weights)


def _log_one_plus_sum(
    exponents: jax.Array, shares: jax.Array, axis_name: AxisName | None
) -> tuple[jax.Array, jax.Array]:
    """`log(1 + sum_n shares exp(exponents))`, finite for any exponents; and `sum_n shares`.

    Args:
        exponents: `[2, N, K]`.
        shares: `[2, N, K]`, not negative.
        axis_name: the mapped axes over which the examples are divided.

    Returns:
        Two arrays `[2, K]`.
    """
    there = shares > 0
    # With the share in the exponent the largest summand is 1, however small its share is.
    exponents = exponents + jnp.log(jnp.where(there, shares, jnp.ones_like(shares)))
    largest = lax.stop_gradient(jnp.where(there, exponents, 0.0).max(axis=1, initial=0.0))
    if axis_name is not None:
        largest = lax.pmax(largest, axis_name)
    shifted = jnp.where(there, exponents - largest[:, None], 0.0)
    summands = jnp.where(there, jnp.exp(shifted), 0.0)
    sums = jnp.stack([summands.sum(axis=1), shares.sum(axis=1)])
    if axis_name is not None:
        sums = lax.psum(sums, axis_name)
    return largest + jnp.log1p(jnp.expm1(-largest) + sums[0]), sums[1]
