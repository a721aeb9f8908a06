"""Second moments of the features over a batch, whatever the classes: what covariances come from."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.class_sums import Additive, on_any_mesh, ratio, spatial_mean
from gini_jax.losses.rules import AxisName, check_features, check_where


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SecondMoments(Additive):
    """Sums over the examples of a batch; those of two batches add to those of their union.

    Attributes:
        total: `[C]`, `sum_n w[n] x[n,c]`, where `x` is the spatial mean of the features.
        product: `[C, C]`, `sum_n w[n] x[n,c] x[n,d]`.
        mass: scalar, `sum_n w[n]`.
        square: scalar, `sum_n w[n]^2`.

    Examples:
        >>> import jax.numpy as jnp
        >>> moments = second_moments(jnp.array([[0.0, 1.0], [2.0, 5.0]]))
        >>> moments.covariance.tolist()
        [[2.0, 4.0], [4.0, 8.0]]
    """

    total: jax.Array
    product: jax.Array
    mass: jax.Array
    square: jax.Array

    @property
    def several(self) -> jax.Array:
        """Whether there is more than one example, without which nothing varies."""
        return jnp.square(self.mass) > (1 + 1e-6) * self.square

    @property
    def covariance(self) -> jax.Array:
        """`[C, C]`, over `mass - square / mass`, which is `N - 1` for a mask; 0 for one example.

        It is a difference of sums, so a feature whose mean is `r` times its standard deviation
        loses about `2 log10(r)` of the seven digits of float32.
        """
        scattered = self.product - jnp.outer(self.total, ratio(self.total, self.mass))
        count = self.mass - ratio(self.square, self.mass)
        found = scattered / jnp.where(self.several, count, jnp.ones_like(count))
        return jnp.where(self.several, found, jnp.zeros_like(found))


def local_second_moments(
    features: Any,
    labels: Any = None,
    *,
    num_classes: int | None = None,
    where: Any = None,
    axis: int = -1,
) -> SecondMoments:
    """`second_moments` of this device's examples alone, under a mapped axis."""
    del num_classes  # of the labels, which do not matter
    features = jnp.asarray(features)
    axis = check_features(features, axis)
    weights = check_where(where, features if labels is None else jnp.asarray(labels))

    def sums(features: jax.Array, weights: jax.Array | None) -> SecondMoments:
        x = spatial_mean(features, weights, axis, signed=True)
        w = jnp.ones(len(x), x.dtype) if weights is None else weights.astype(x.dtype)
        product = jnp.einsum("n,nc,nd->cd", w, x, x, precision=lax.Precision.HIGHEST)
        total = jnp.einsum("n,nc->c", w, x, precision=lax.Precision.HIGHEST)
        return SecondMoments(total, product, w.sum(), jnp.square(w).sum())

    return on_any_mesh(sums, features, weights)


def second_moments(
    features: jax.Array,
    labels: jax.Array | None = None,
    *,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
) -> SecondMoments:
    """Sums that `vcreg_loss` and `decorrelation_loss` are functions of.

    Args:
        features: `[N, ..., C]` activations of any float type; their mean over spatial or token axes
            is taken.
        labels: not needed, and not used: accepted because other losses take them.
        num_classes: not used either.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to sum over.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.

    Returns:
        `SecondMoments` in float32 (float64 for float64 input).

    Raises:
        ValueError: the shapes do not fit.
        TypeError: the features are not floating-point.

    Examples:
        >>> import jax.numpy as jnp
        >>> second_moments(jnp.array([[1.0, 2.0], [3.0, 4.0]])).product.tolist()
        [[10.0, 14.0], [14.0, 20.0]]
    """
    del num_classes
    local = local_second_moments(features, labels, where=where, axis=axis)
    return local if axis_name is None else lax.psum(local, axis_name)
