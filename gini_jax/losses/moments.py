"""First and second moments of the features, by class: sums that scatter losses are functions of."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.class_sums import Additive, local_sums, ratio
from gini_jax.losses.rules import AxisName


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeatureMoments(Additive):
    """Sums over the examples of a batch; those of two batches add to those of their union.

    Attributes:
        total: `[C, K]`, `sum_n w[n] Y[n,k] x[n,c]`, where `x` is the spatial mean of the features.
        square: `[K]`, `sum_n w[n] Y[n,k] |x[n]|^2`.
        mass: `[K]`, `sum_n w[n] Y[n,k]`.

    Examples:
        >>> import jax.numpy as jnp
        >>> moments = feature_moments(jnp.array([[3.0, 4.0]]), jnp.array([[1.0, 0.0]]))
        >>> (moments + moments).square.tolist()
        [50.0, 0.0]
    """

    total: jax.Array
    square: jax.Array
    mass: jax.Array

    @property
    def present(self) -> jax.Array:
        """`[K]`: whether the batch has the class."""
        return self.mass > 0

    @property
    def means(self) -> jax.Array:
        """`[C, K]`: the mean features of each class; 0 for a class that is absent."""
        return ratio(self.total, self.mass[None, :])

    @property
    def within(self) -> jax.Array:
        """Scalar `sum_nk w Y |x - mean_k|^2`, the trace of the within-class scatter matrix."""
        return jnp.maximum((self.square - (self.total * self.means).sum(axis=0)).sum(), 0.0)

    @property
    def between(self) -> jax.Array:
        """Scalar `sum_k mass_k |mean_k - mean|^2`, the trace of the between-class scatter matrix.

        It sums squared differences, so nothing cancels.
        """
        centre = ratio(self.total.sum(axis=1), self.mass.sum())
        shifted = jnp.where(self.present[None, :], self.means - centre[:, None], 0.0)
        return (self.mass * jnp.square(shifted).sum(axis=0)).sum()


def local_moments(features: Any, labels: Any, **options: Any) -> FeatureMoments:
    """`feature_moments` of this device's examples alone, under a mapped axis."""
    sums = local_sums(features, labels, signed=True, squares=True, **options)
    return FeatureMoments(sums.activation[:-1], sums.activation[-1], sums.mass)


def feature_moments(
    features: jax.Array,
    labels: jax.Array,
    *,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
) -> FeatureMoments:
    """Sums that `center_loss`, `fisher_loss` and `island_loss` are functions of.

    Args:
        features: `[N, ..., C]` activations of any float type; their mean over spatial or token axes
            is taken.
        labels: `[N, K]` one-hot or soft rows, or `[N]` integers together with `num_classes`.
        num_classes: `K`; needed for integer labels only.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to sum over.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.

    Returns:
        `FeatureMoments` in float32 (float64 for float64 input).

    Raises:
        ValueError: the shapes do not fit, or integer labels come without `num_classes`.
        TypeError: the features are not floating-point.

    Examples:
        >>> import jax.numpy as jnp
        >>> moments = feature_moments(jnp.array([[1.0], [3.0]]), jnp.array([0, 0]), num_classes=2)
        >>> moments.means.tolist(), float(moments.within)
        ([[2.0, 0.0]], 2.0)
    """
    local = local_moments(features, labels, num_classes=num_classes, where=where, axis=axis)
    return local if axis_name is None else lax.psum(local, axis_name)
