"""Sums of features divided by their lengths: what losses over angles, without pairs, come from."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.class_sums import Additive, label_rows, on_any_mesh, spatial_mean
from gini_jax.losses.pairs import unit_vectors
from gini_jax.losses.rules import (
    AxisName,
    check_class_labels,
    check_features,
    check_where,
    known_array,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DirectionSums(Additive):
    """Sums over the examples of a batch, whose features are divided by their lengths.

    `v[n,k] = w[n] Y[n,k]`. An example whose features are all 0 has no direction: it is left out.

    Attributes:
        total: `[C, K]`, `sum_n v[n,k] u[n,c]`, where `u` are the unit vectors.
        mass: `[K]`, `sum_n v[n,k]`.
        own: `[K]`, `sum_n v[n,k]^2`: what the pairs of examples with themselves add.
        own_all: scalar, `sum_n (sum_k v[n,k])^2`.
    """

    total: jax.Array
    mass: jax.Array
    own: jax.Array
    own_all: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DirectionProducts(Additive):
    """Second moments, by class, of features that are divided by their lengths.

    Attributes:
        product: `[K, C, C]`, `sum_n v[n,k] u[n,c] u[n,d]`, with `u` and `v` of `DirectionSums`.
        mass: `[K]`, `sum_n v[n,k]`.
    """

    product: jax.Array
    mass: jax.Array


def _sums(units: jax.Array, v: jax.Array) -> DirectionSums:
    total = jnp.einsum("nk,nc->ck", v, units, precision=lax.Precision.HIGHEST)
    own, own_all = jnp.square(v).sum(axis=0), jnp.square(v.sum(axis=1)).sum()
    return DirectionSums(total, v.sum(axis=0), own, own_all)


def _products(units: jax.Array, v: jax.Array) -> DirectionProducts:
    weighted = v.T[:, :, None] * units[None]
    product = jnp.einsum("knc,nd->kcd", weighted, units, precision=lax.Precision.HIGHEST)
    return DirectionProducts(product, v.sum(axis=0))


def _local(make: Callable[[jax.Array, jax.Array], Any]) -> Callable[..., Any]:
    """A function of this device's features and labels, of one of unit vectors and their weights."""

    def of_batch(
        features: Any,
        labels: Any,
        *,
        num_classes: int | None = None,
        where: Any = None,
        axis: int = -1,
    ) -> Any:
        features, labels = jnp.asarray(features), known_array(labels)
        axis = check_features(features, axis)
        weights = check_where(where, labels)
        check_class_labels(labels, features, num_classes, weights)
        classes = labels.shape[1] if labels.ndim == 2 else num_classes or 0

        def of_arrays(features: Any, labels: Any, weights: Any) -> Any:
            x = spatial_mean(features, weights, axis, signed=True)
            rows, w = label_rows(labels, weights, classes, x.dtype)
            w = jnp.where((x != 0).any(axis=1), w, jnp.zeros_like(w))
            return make(unit_vectors(x), w[:, None] * rows)

        return on_any_mesh(of_arrays, features, labels, weights)

    return of_batch


local_direction_sums = _local(_sums)
local_direction_products = _local(_products)


def direction_sums(
    features: Any, labels: Any, *, axis_name: AxisName | None = None, **batch: Any
) -> DirectionSums:
    """Sums that `opl_loss` is a function of; arguments as in `class_sums`.

    Examples:
        >>> import jax.numpy as jnp
        >>> sums = direction_sums(jnp.array([[3.0, 0.0], [0.0, 2.0]]), jnp.eye(2))
        >>> sums.total.tolist(), sums.own.tolist(), float(sums.own_all)
        ([[1.0, 0.0], [0.0, 1.0]], [1.0, 1.0], 2.0)
    """
    local: DirectionSums = local_direction_sums(features, labels, **batch)
    return local if axis_name is None else lax.psum(local, axis_name)


def direction_products(
    features: Any, labels: Any, *, axis_name: AxisName | None = None, **batch: Any
) -> DirectionProducts:
    """Sums that `rate_reduction_loss` is a function of; arguments as in `class_sums`.

    Examples:
        >>> import jax.numpy as jnp
        >>> direction_products(jnp.array([[3.0, 0.0], [0.0, 2.0]]), jnp.eye(2)).product.tolist()
        [[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]
    """
    local: DirectionProducts = local_direction_products(features, labels, **batch)
    return local if axis_name is None else lax.psum(local, axis_name)
