"""The additive sums over a batch that every term is a function of."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.rules import (
    AxisName,
    check_class_labels,
    check_features,
    check_where,
    known_array,
    of_32_bits,
)

EPS = 1e-10
Reduction: TypeAlias = Literal["mean", "none"]

Sums = TypeVar("Sums")


class Additive:
    """Sums over examples: those of two batches add to those of their union."""

    def __add__(self: Sums, other: Sums) -> Sums:
        return jax.tree.map(jnp.add, self, other)  # type: ignore[no-any-return]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassSums(Additive):
    """Sums over the examples of a batch; those of two batches add to those of their union.

    Attributes:
        activation: `[C, K]`, `sum_n w[n] z[n,c] Y[n,k]`, where `z` is the spatial mean of `|A|`.
        mass: `[K]`, `sum_n w[n] Y[n,k]`.

    Examples:
        >>> import jax.numpy as jnp
        >>> half = ClassSums(activation=jnp.array([[2.0, 0.0]]), mass=jnp.array([2.0, 1.0]))
        >>> (half + half).mass.tolist()
        [4.0, 2.0]
    """

    activation: jax.Array
    mass: jax.Array


@jax.custom_jvp
def _absolute(x: jax.Array) -> jax.Array:
    return jnp.abs(x)


@_absolute.defjvp
def _absolute_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    """|x| with derivative 0 at 0, where that of jnp.abs is 1: a dead feature gets no gradient."""
    (x,), (tangent,) = primals, tangents
    zero = jnp.zeros_like(tangent)
    return jnp.abs(x), jnp.where(x > 0, tangent, jnp.where(x < 0, -tangent, zero))


def class_sums(
    features: jax.Array,
    labels: jax.Array,
    *,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
    signed: bool = False,
) -> ClassSums:
    """Sums over the examples that every term is a function of.

    `z[n,c] = mean over space of |A[n,...,c]|`, `activation[c,k] = sum_n w[n] z[n,c] Y[n,k]`,
    `mass[k] = sum_n w[n] Y[n,k]`.

    Args:
        features: `[N, ..., C]` activations of any float type, with any number of spatial or token
            axes.
        labels: `[N, K]` one-hot or soft rows, or `[N]` integers together with `num_classes`. A
            negative integer belongs to no class.
        num_classes: `K`; needed for integer labels only.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to sum over.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.
        signed: average `A` itself instead of `|A|`, as the entropy variant does.

    Returns:
        `ClassSums` in float32 (float64 for float64 input).

    Raises:
        ValueError: the shapes do not fit, integer labels come without `num_classes`, or a
            known label is invalid; see `checked`.
        TypeError: the features are not floating-point.

    References:
        arXiv 2202.07073, section 3: the class-wise mean activation of each feature.

    Examples:
        >>> import jax.numpy as jnp
        >>> features = jnp.array([[1.0, -2.0], [3.0, 0.0]])
        >>> sums = class_sums(features, jnp.array([0, 1]), num_classes=2)
        >>> sums.activation.tolist()
        [[1.0, 3.0], [2.0, 0.0]]
        >>> sums.mass.tolist()
        [1.0, 1.0]
    """
    local = local_sums(
        features, labels, num_classes=num_classes, where=where, axis=axis, signed=signed
    )
    return local if axis_name is None else lax.psum(local, axis_name)


def local_sums(
    features: Any,
    labels: Any,
    *,
    num_classes: int | None = None,
    where: Any = None,
    axis: int = -1,
    signed: bool = False,
    squares: bool = False,
) -> ClassSums:
    """`class_sums` of this device's examples alone, under a mapped axis.

    With `squares` the squared norm of `z` is one more feature, the last.
    """
    features, labels = jnp.asarray(features), known_array(labels)
    axis = check_features(features, axis)
    weights = check_where(where, labels)
    check_class_labels(labels, features, num_classes, weights)
    classes = num_classes or 0  # of integer labels, which have come with it
    if labels.ndim == 1:
        labels = class_index(labels, classes)

    def sums(features: jax.Array, labels: jax.Array, weights: jax.Array | None) -> ClassSums:
        z = spatial_mean(features, weights, axis, signed)
        weights = None if weights is None else weights.astype(z.dtype)
        if squares:
            z = jnp.concatenate([z, jnp.square(z).sum(axis=1, keepdims=True)], axis=1)
        if labels.ndim == 2:
            return _sums_by_product(z, labels.astype(z.dtype), weights)
        # A segment sum is O(NC + CK) against the one-hot product's O(NCK); a TPU does a product on
        # its matrix unit and a scatter one row at a time. benchmarks/losses.py times both.
        return lax.platform_dependent(
            z,
            labels,
            weights,
            tpu=lambda z, labels, weights: _sums_by_product(
                z, jax.nn.one_hot(labels, classes, dtype=z.dtype), weights
            ),
            default=lambda z, labels, weights: _sums_by_segment(z, labels, weights, classes),
        )

    return on_any_mesh(sums, features, labels, weights)


def spatial_mean(
    features: jax.Array, weights: jax.Array | None, axis: int, signed: bool
) -> jax.Array:
    """`z`, `[N, C]`: the mean of `|A|`, or of `A`, over space; 0 for rows of weight 0.

    Rows of weight 0 are left out by selection: they may hold NaN.
    """
    activation = features.astype(sum_type(features.dtype))
    if weights is not None:
        kept = (weights.astype(activation.dtype) != 0).reshape(-1, *[1] * (features.ndim - 1))
        activation = jnp.where(kept, activation, jnp.zeros_like(activation))
    if not signed:
        activation = _absolute(activation)
    return activation.mean(axis=tuple(i for i in range(1, features.ndim) if i != axis))


def class_index(labels: jax.Array, num_classes: int) -> jax.Array:
    """Integer labels of any type as int32, with -1 for those outside of `[0, K)`."""
    wide = of_32_bits(labels)
    inside = (wide >= 0) & (wide < num_classes)
    return jnp.where(inside, wide, jnp.zeros_like(wide)).astype(jnp.int32) + jnp.where(
        inside, 0, -1
    )


def label_rows(
    labels: jax.Array, weights: jax.Array | None, num_classes: int, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """`[N, K]` label rows, with zeros where the weight is 0, and `[N]` weights.

    An integer outside of `[0, K)` gives the weight 0.
    """
    w = jnp.ones(labels.shape[0], dtype) if weights is None else weights.astype(dtype)
    if labels.ndim == 1:
        index = class_index(labels, num_classes)
        w = jnp.where(index < 0, jnp.zeros_like(w), w)
        rows = jax.nn.one_hot(index, num_classes, dtype=dtype)
    else:
        rows = labels.astype(dtype)
    return jnp.where((w != 0)[:, None], rows, jnp.zeros_like(rows)), w


def ratio(total: jax.Array, count: jax.Array) -> jax.Array:
    """`total / count`, or `total` where the count is 0, with a finite gradient."""
    return total / jnp.where(count > 0, count, jnp.ones_like(count))


def reduced(
    weighted: jax.Array, weights: jax.Array, axis_name: AxisName | None, reduction: Reduction
) -> Any:
    """The sum of the weighted values over that of the weights, over all devices; or the values.

    Args:
        weighted: `[n]` values times weights.
        weights: `[n]`, or counts of what a value is a sum over.
        axis_name: the mapped axes to sum over.
        reduction: `"none"` gives `[n]` values and the mask of those that count, whose mean over all
            devices is the scalar.
    """
    counted = weights != 0
    sums = jnp.stack([weighted.sum(), weights.sum(), counted.sum().astype(weights.dtype)])
    if axis_name is not None:
        sums = lax.psum(sums, axis_name)
    if reduction == "mean":
        return ratio(sums[0], sums[1])
    return weighted * ratio(sums[2], sums[1]), counted


def sum_type(dtype: Any) -> Any:
    """What sums are accumulated in: float32, or float64 for float64."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def as_class_sums(features: Any, labels: Any, *, signed: bool = False, **batch: Any) -> ClassSums:
    """The class sums of a batch; sums that the caller already has are returned unchanged."""
    return as_sums(ClassSums, partial(class_sums, signed=signed), features, labels, batch)


def as_sums(
    kind: type[Sums], make: Callable[..., Sums], features: Any, labels: Any, batch: dict[str, Any]
) -> Sums:
    """Computes sums of a kind from features and labels, or returns those that are given.

    Raises:
        ValueError: features come without labels, or sums with labels or what describes a batch.
    """
    if not isinstance(features, kind):
        if labels is None:
            raise ValueError(
                f"labels are missing; give them, or give {kind.__name__} instead of features"
            )
        return make(features, labels, **batch)
    defaults = {"num_classes": None, "where": None, "axis_name": None, "axis": -1}
    given = [name for name, value in batch.items() if value is not defaults[name]]
    if labels is not None or given:
        names = ", ".join((["labels"] if labels is not None else []) + given)
        raise ValueError(
            f"{names} given together with {kind.__name__}, which already contain the labels; "
            f"leave {names} out"
        )
    return features


def _sums_by_product(z: jax.Array, onehot: jax.Array, weights: jax.Array | None) -> ClassSums:
    weighted = onehot
    if weights is not None:
        kept = jnp.where(weights[:, None] != 0, onehot, jnp.zeros_like(onehot))
        weighted = weights[:, None] * kept
    # Highest precision: the TPU multiplies float32 in bfloat16 passes by default.
    product = jnp.einsum("nc,nk->ck", z, weighted, precision=lax.Precision.HIGHEST)
    return ClassSums(activation=product, mass=weighted.sum(axis=0))


def _sums_by_segment(
    z: jax.Array, labels: jax.Array, weights: jax.Array | None, num_classes: int
) -> ClassSums:
    index = jnp.where(labels < 0, jnp.full_like(labels, num_classes), labels)  # is dropped
    if weights is None:
        weights = jnp.ones(labels.shape, z.dtype)
    else:
        z = weights[:, None] * z
    activation = jax.ops.segment_sum(z, index, num_classes)
    return ClassSums(activation.T, mass=jax.ops.segment_sum(weights, index, num_classes))


def on_any_mesh(sums: Callable[..., Any], *arrays: Any) -> Any:
    """Calls `sums`; where arrays lie on a mesh with Explicit axes, the compiler divides the work.

    A contraction over a sharded Explicit axis leaves open how its result is sharded. Here every
    device gets the whole result, by one all-reduce.
    """
    meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(arrays)]
    axis_type = jax.sharding.AxisType.Explicit
    for mesh in meshes:
        explicit = [
            name
            for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
            if kind == axis_type
        ]
        if explicit:
            replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            return jax.sharding.auto_axes(sums, axes=tuple(explicit), out_sharding=replicated)(
                *arrays
            )
    return sums(*arrays)
