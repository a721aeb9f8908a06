"""The additive sums over a batch that every term is a function of."""

import dataclasses
from collections.abc import Callable, Hashable
from functools import partial
from typing import Annotated, Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

EPS = 1e-10

AxisName: TypeAlias = Hashable | tuple[Hashable, ...]
Positive: TypeAlias = Annotated[float, "(0, inf)"]
NotNegative: TypeAlias = Annotated[float, "[0, inf)"]
Sums = TypeVar("Sums")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassSums:
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

    def __add__(self, other: "ClassSums") -> "ClassSums":
        return ClassSums(self.activation + other.activation, self.mass + other.mass)


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
        labels: `[N, K]` one-hot or soft rows, or `[N]` integers together with `num_classes` (an
            integer outside `[0, K)` belongs to no class).
        num_classes: `K`; needed for integer labels only.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to sum over.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.
        signed: average `A` itself instead of `|A|`, as the entropy variant does.

    Returns:
        `ClassSums` in float32 (float64 for float64 input).

    Raises:
        ValueError: the shapes do not fit, or integer labels come without `num_classes`.
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
    features, labels = jnp.asarray(features), jnp.asarray(labels)
    axis = check_features(features, axis)
    _check_labels(labels, features, num_classes)
    classes = num_classes or 0  # of integer labels, which have come with it
    weights = check_where(where, labels)

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


def label_rows(
    labels: jax.Array, weights: jax.Array | None, num_classes: int, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """`[N, K]` label rows, with zeros where the weight is 0, and `[N]` weights."""
    rows = jax.nn.one_hot(labels, num_classes, dtype=dtype) if labels.ndim == 1 else labels
    rows = rows.astype(dtype)
    if weights is None:
        return rows, jnp.ones(labels.shape[0], dtype)
    weights = weights.astype(dtype)
    return jnp.where((weights != 0)[:, None], rows, jnp.zeros_like(rows)), weights


def ratio(total: jax.Array, count: jax.Array) -> jax.Array:
    """`total / count`; where nothing counts, the total as it is, with a finite gradient."""
    return total / jnp.where(count > 0, count, jnp.ones_like(count))


def sum_type(dtype: Any) -> Any:
    """What sums are accumulated in: float32, or float64 for float64."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def as_class_sums(features: Any, labels: Any, *, signed: bool = False, **options: Any) -> ClassSums:
    """The class sums of a batch; those that a caller already has are taken as they are."""
    return as_sums(ClassSums, partial(class_sums, signed=signed), features, labels, options)


def as_sums(
    kind: type[Sums], make: Callable[..., Sums], features: Any, labels: Any, options: dict[str, Any]
) -> Sums:
    """Sums of a kind: made from features and labels, or those that a caller already has.

    Raises:
        ValueError: features come without labels, or sums with labels or options.
    """
    if not isinstance(features, kind):
        if labels is None:
            raise ValueError(
                f"labels are missing; give them, or give {kind.__name__} instead of features"
            )
        return make(features, labels, **options)
    defaults = {"num_classes": None, "where": None, "axis_name": None, "axis": -1}
    given = [name for name, value in options.items() if value is not defaults[name]]
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
    index = jnp.where(labels < 0, jnp.full_like(labels, num_classes), labels)  # outside: dropped
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


def check_features(features: jax.Array, axis: int) -> int:
    """The feature axis, counted from 0.

    Raises:
        ValueError: the shape or the axis does not fit.
        TypeError: the features are not floating-point.
    """
    if features.ndim < 2 or not jnp.issubdtype(features.dtype, jnp.floating):
        error = ValueError if features.ndim < 2 else TypeError
        raise error(
            f"features have shape {features.shape} and type {features.dtype}; "
            "they must be floating-point [N, ..., C]"
        )
    if not -features.ndim < axis < features.ndim or axis == 0:
        raise ValueError(
            f"axis={axis}, but features of shape {features.shape} have their examples along axis "
            "0; the feature axis is -1 (channels last) or 1 (channels first)"
        )
    return axis % features.ndim


def _check_labels(labels: jax.Array, features: jax.Array, num_classes: int | None) -> None:
    if labels.ndim == 1:
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"labels have shape {labels.shape} and type {labels.dtype}; they must be [N, K] "
                "rows, or [N] integers together with num_classes"
            )
        if num_classes is None:
            raise ValueError(f"integer labels of shape {labels.shape} need num_classes=K")
    elif labels.ndim != 2:
        raise ValueError(f"labels have shape {labels.shape}; they must be [N, K], or [N] integers")
    elif num_classes is not None and labels.shape[1] != num_classes:
        raise ValueError(
            f"labels of shape {labels.shape} have {labels.shape[1]} classes, but "
            f"num_classes={num_classes}; leave num_classes out, or make them agree"
        )
    if labels.shape[0] != features.shape[0]:
        raise ValueError(
            f"features of shape {features.shape} hold {features.shape[0]} examples, labels of "
            f"shape {labels.shape} hold {labels.shape[0]}; both must be of the same batch"
        )


def check_where(where: Any, labels: jax.Array) -> jax.Array | None:
    """Example weights as an array.

    Raises:
        ValueError: the shape does not fit.
    """
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.shape != labels.shape[:1]:
        raise ValueError(
            f"where has shape {where.shape}; it must be [N] = {labels.shape[:1]}, one weight per "
            "example"
        )
    return where
