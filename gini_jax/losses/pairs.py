"""The table of pairs of a global batch; losses over pairs and triplets are means over it.

Each device holds its own examples as anchors, and all examples of the global batch to compare them
with: one `all_gather` of the features. A loss is a function of the rows of the table.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gini_jax.losses.class_sums import on_any_mesh, ratio, spatial_mean, sum_type
from gini_jax.losses.rules import (
    AxisName,
    check_features,
    check_pair_labels,
    check_where,
    known_array,
    of_32_bits,
)


def far(values: jax.Array) -> float:
    """A finite number of a type that stands for infinity, which would give NaN gradients."""
    return float(jnp.finfo(values.dtype).max) / 4


class Rows(NamedTuple):
    """Some anchors against all `N` examples of the global batch.

    Attributes:
        values: `[n, N]` similarities or distances.
        positive: `[n, N]`, True for another example of the anchor's class.
        negative: `[n, N]`, True for an example of another class.
    """

    values: jax.Array
    positive: jax.Array
    negative: jax.Array


# From rows to `[n]` sums and `[n]` counts of what is averaged.
RowLoss: TypeAlias = Callable[[Rows], tuple[jax.Array, jax.Array]]
Compare: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


class Examples(NamedTuple):
    """Features `[n, C]`, classes `[n]`, weights `[n]` and places `[n]` in the global batch."""

    features: jax.Array
    classes: jax.Array
    weights: jax.Array
    example_index: jax.Array


def mean_over_anchors(
    row_loss: RowLoss,
    compare: Compare,
    features: Any,
    labels: Any,
    *,
    where: Any = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
    chunk_size: int | None = None,
) -> jax.Array:
    """The weighted sum of the anchors' sums over that of their counts; 0 if nothing counts.

    Args:
        row_loss: the loss of some anchors.
        compare: from `[n, C]` and `[N, C]` to `[n, N]` similarities or distances.
        features: `[N, ..., C]`; the mean over spatial or token axes is taken.
        labels: `[N]` integers, or `[N, K]` rows, which count as their largest class. A negative
            integer leaves the example out.
        where: `[N]` mask, or weights of the anchors. A row of weight 0 is left out as an anchor and
            from the pairs of others.
        axis_name: the mapped axes over which the batch is divided.
        axis: the feature axis.
        chunk_size: anchors at a time, to bound memory; all at once by default.

    Raises:
        ValueError: the shapes do not fit, the labels are invalid, or the chunk size is not a
            positive integer.
        TypeError: the features are not floating-point.
    """
    features, labels = jnp.asarray(features), known_array(labels)
    axis = check_features(features, axis)
    weights = check_where(where, labels)
    check_pair_labels(labels, features, weights)
    if chunk_size is not None and not (
        isinstance(chunk_size, (int, np.integer)) and chunk_size >= 1
    ):
        raise ValueError(f"chunk_size={chunk_size!r}; it must be a positive integer, or None")
    if not len(features):  # nothing counts
        return jnp.zeros((), sum_type(features.dtype))

    def loss(features: jax.Array, labels: jax.Array, weights: jax.Array | None) -> jax.Array:
        x = spatial_mean(features, weights, axis, signed=True)
        w = jnp.ones(x.shape[0], x.dtype) if weights is None else weights.astype(x.dtype)
        classes = _classes(labels, w)
        w = jnp.where(classes < 0, jnp.zeros_like(w), w)
        own = Examples(x, classes, w, jnp.arange(x.shape[0]))
        everyone = own
        if axis_name is not None:
            own = own._replace(
                example_index=own.example_index + lax.axis_index(axis_name) * x.shape[0]
            )
            everyone = _gathered(own, axis_name)

        def of_anchors(anchors: Examples) -> jax.Array:
            rows = _rows(compare, anchors, everyone)
            total, count = row_loss(rows)
            w = anchors.weights
            # A row without a pair may hold anything, but neither value nor gradient of it counts.
            total = jnp.where((w > 0) & (count > 0), total, jnp.zeros_like(total))
            return jnp.stack([(w * total).sum(), (w * count).sum()])

        sums = _in_chunks(of_anchors, own, chunk_size)
        if axis_name is not None:
            sums = lax.psum(sums, axis_name)
        return ratio(sums[0], sums[1])

    return on_any_mesh(loss, features, labels, weights)


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """`[n, N]` cosines of `[n, C]` and `[N, C]`; 0 for rows of zeros."""
    return _product(unit_vectors(x), unit_vectors(y))


def unit_vectors(x: jax.Array) -> jax.Array:
    """Rows divided by their lengths; a row of zeros stays, with zero gradient.

    Rows are first scaled by a constant, so that no square leaves the range of the type.
    """
    largest = lax.stop_gradient(jnp.abs(x).max(axis=-1, keepdims=True))
    safe = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    scaled = x / safe
    square = jnp.square(scaled).sum(axis=-1, keepdims=True)
    return scaled * lax.rsqrt(jnp.where(largest > 0, square, jnp.ones_like(square)))


@jax.custom_jvp
def squared_distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """`[n, N]` squared Euclidean distances of `[n, C]` and `[N, C]`, sums of squared differences.

    The expansion `|x|^2 - 2 xy + |y|^2` would lose precision for narrow clusters far from 0. The
    derivative uses products, which need no `[n, N, C]` array.
    """
    return jnp.square(x[:, None, :] - y[None, :, :]).sum(axis=2)


@squared_distance.defjvp
def _squared_distance_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """`2 (x - y) (dx - dy)`, with both shifted by the mean of `y`: rounding errors shrink."""
    (x, y), (dx, dy) = primals, tangents
    centre = lax.stop_gradient(y.mean(axis=0, keepdims=True))
    near_x, near_y = x - centre, y - centre
    of_own = (near_x * dx).sum(axis=1)[:, None] + (near_y * dy).sum(axis=1)[None, :]
    return squared_distance(x, y), 2 * (of_own - _product(dx, near_y) - _product(near_x, dy))


def distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """`[n, N]` Euclidean distances of `[n, C]` and `[N, C]`, with zero gradient at 0."""
    square = squared_distance(x, y)
    apart = ~(square <= 0)  # NaN stays NaN
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, jnp.ones_like(square))), 0.0)


def masked_logsumexp(values: jax.Array, mask: jax.Array) -> jax.Array:
    """`[n]`: over the entries of `[n, N]` in the mask; about `-far` where there is none."""
    kept = jnp.where(mask, values, jnp.full_like(values, -far(values)))
    largest = lax.stop_gradient(kept.max(axis=1))
    return largest + jnp.log(jnp.exp(kept - largest[:, None]).sum(axis=1))


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum("nc,mc->nm", x, y, precision=lax.Precision.HIGHEST)


def _rows(compare: Compare, anchors: Examples, everyone: Examples) -> Rows:
    same = anchors.classes[:, None] == everyone.classes[None, :]
    other = anchors.example_index[:, None] != everyone.example_index[None, :]
    there = everyone.weights[None, :] > 0
    values = compare(anchors.features, everyone.features)
    return Rows(values, same & other & there, ~same & there)


def _classes(labels: jax.Array, weights: jax.Array) -> jax.Array:
    """`[n]` integers; those of rows of weight 0, which may hold NaN, mean nothing.

    A row of zeros is of no class, -1.
    """
    if labels.ndim == 1:
        return of_32_bits(labels)
    rows = jnp.where((weights != 0)[:, None], labels, jnp.zeros_like(labels))
    return jnp.where((rows > 0).any(axis=1), rows.argmax(axis=1), -1)


def _gathered(own: Examples, axis_name: AxisName) -> Examples:
    """The examples of all devices, gathered as bits in one collective: integers stay exact."""

    @jax.custom_jvp
    def gathered(features: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
        bits = _as_bits(features)
        table = lax.all_gather(jnp.concatenate([bits, others], axis=1), axis_name, tiled=True)
        # The others are returned as float32, which has a derivative; the caller casts them back.
        return (
            _from_bits(table[:, : bits.shape[1]], features),
            lax.bitcast_convert_type(table[:, bits.shape[1] :], jnp.float32),
        )

    @gathered.defjvp
    def _of_features(primals: Any, tangents: Any) -> Any:
        features, others = gathered(*primals)
        moved = lax.all_gather(tangents[0], axis_name, tiled=True)
        return (features, others), (moved, jnp.zeros_like(others))

    columns = [_as_bits(x) for x in own[1:]]
    features, others = gathered(own.features, jnp.concatenate(columns, axis=1))
    table = lax.bitcast_convert_type(lax.stop_gradient(others), jnp.uint32)
    ends = list(itertools.accumulate(column.shape[1] for column in columns))
    parts = jnp.split(table, ends[:-1], axis=1)
    return Examples(features, *map(_from_bits, parts, own[1:]))


def _as_bits(x: jax.Array) -> jax.Array:
    """`[n]` or `[n, C]` of 32 or 64 bits a number as `[n, columns]` of type uint32."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return bits.reshape(x.shape[0], -1)


def _from_bits(bits: jax.Array, like: jax.Array) -> jax.Array:
    """The inverse of `_as_bits`, in the type and the columns of `like`."""
    pair = (2,) if like.dtype.itemsize == 8 else ()
    return lax.bitcast_convert_type(bits.reshape(-1, *like.shape[1:], *pair), like.dtype)


def _in_chunks(
    of_anchors: Callable[[Examples], jax.Array], own: Examples, chunk_size: int | None
) -> jax.Array:
    """`of_anchors` summed over chunks, each of which is computed again in the backward pass."""
    count = own.features.shape[0]
    if chunk_size is None or chunk_size >= count:
        return of_anchors(own)
    padding = -count % chunk_size  # anchors of weight 0

    def chunked(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(-1, chunk_size, *x.shape[1:])

    chunks = jax.tree.map(chunked, own)
    return lax.map(jax.checkpoint(of_anchors), chunks).sum(axis=0)
