"""The table of pairs of a global batch; losses over pairs and triplets are means over it.

Each device holds its own examples as anchors, and all examples of the global batch to compare them
with: one `all_gather` of the features. A loss is a function of the rows of the table.
"""

import functools
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gini_jax.losses.class_sums import (
    Reduction,
    on_any_mesh,
    reduced,
    spatial_mean,
    sum_type,
)
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
    """Some anchors against all examples that they are compared with.

    Attributes:
        values: `[n, M]` similarities or distances.
        positive: `[n, M]`, True for another example that the anchor belongs with.
        negative: `[n, M]`, True for an example that it does not belong with.
    """

    values: jax.Array
    positive: jax.Array
    negative: jax.Array


# From rows to `[n]` sums and `[n]` counts of what is averaged.
RowLoss: TypeAlias = Callable[[Rows], tuple[jax.Array, jax.Array]]
Compare: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
# From the labels of n and of M examples to which pairs are positive, `[n, M]`; or to which are
# positive and which negative, so that some are neither.
Positives: TypeAlias = Callable[[jax.Array, jax.Array], Any]
References: TypeAlias = tuple[jax.Array, jax.Array] | tuple[jax.Array, jax.Array, jax.Array]
Against: TypeAlias = Literal["batch", "references"]
Precision: TypeAlias = Literal["highest", "high", "default"]


class Options(NamedTuple):
    """What all losses over pairs take besides features and labels; see `supcon_loss`."""

    where: Any = None
    axis_name: AxisName | None = None
    axis: int = -1
    chunk_size: int | None = None
    references: References | None = None
    against: Against = "batch"
    positives: Positives | None = None
    reduction: Reduction = "mean"


class Examples(NamedTuple):
    """Features `[n, C]`, labels `[n]` or `[n, W]`, weights `[n]`, and places `[n]` in the batch."""

    features: jax.Array
    labels: jax.Array
    weights: jax.Array
    example_index: jax.Array


def mean_over_anchors(
    row_loss: RowLoss, compare: Compare, features: Any, labels: Any, options: Options
) -> Any:
    """The weighted sum of the anchors' sums over that of their counts; 0 if nothing counts.

    Args:
        row_loss: the loss of some anchors.
        compare: from `[n, C]` and `[M, C]` to `[n, M]` similarities or distances.
        features: `[N, ..., C]`; the mean over spatial or token axes is taken.
        labels: as in `supcon_loss`.
        options: as in `supcon_loss`.

    Raises:
        ValueError: the shapes do not fit, the labels are invalid, or the chunk size is not a
            positive integer.
        TypeError: the features are not floating-point.
    """
    where, axis_name, axis, chunk_size, references, against, positives, reduction = options
    features, labels, weights, axis = _checked(features, labels, where, axis, positives)
    check_chunk_size(chunk_size)
    if against == "references" and references is None:
        raise ValueError("against='references' needs references=(features, labels)")
    others = None
    if references is not None:
        others = checked_references(references, features, axis, labels.shape[1:])
    dtype = sum_type(features.dtype)
    if not len(features):  # nothing counts
        none = jnp.zeros(0, dtype), jnp.zeros(0, bool)
        return jnp.zeros((), dtype) if reduction == "mean" else none

    def loss(features: Any, labels: Any, weights: Any, others: Any) -> Any:
        own = _examples(features, labels, weights, axis, positives)
        compared = [] if against == "references" else [own]
        if axis_name is not None:
            first = lax.axis_index(axis_name) * own.features.shape[0]
            own = own._replace(example_index=own.example_index + first)
            compared = [_gathered(own, axis_name) for _ in compared]
        if others is not None:
            table, of_table, there = others
            found = _examples(table, of_table, there, -1, positives)
            nowhere = jnp.full_like(found.example_index, -1)  # no anchor is among them
            compared.append(found._replace(example_index=nowhere))
        everyone = _stacked(compared)

        def of_anchors(anchors: Examples) -> jax.Array:
            total, count = row_loss(_rows(compare, anchors, everyone, positives))
            w = anchors.weights
            # A row without a pair may hold anything, but neither value nor gradient of it counts.
            total = jnp.where((w > 0) & (count > 0), total, jnp.zeros_like(total))
            return jnp.stack([w * total, w * count], axis=1)

        totals, counts = in_chunks(of_anchors, own, chunk_size).T
        return reduced(totals, counts, axis_name, reduction)

    return on_any_mesh(loss, features, labels, weights, others)


def _checked(
    features: Any, labels: Any, where: Any, axis: int, positives: Positives | None
) -> tuple[jax.Array, jax.Array, jax.Array | None, int]:
    features, labels = jnp.asarray(features), known_array(labels)
    axis = check_features(features, axis)
    weights = check_where(where, labels)
    if positives is None:
        check_pair_labels(labels, features, weights)
    elif labels.shape[:1] != features.shape[:1]:
        raise ValueError(
            f"features of shape {features.shape} hold {features.shape[0]} examples, labels of "
            f"shape {labels.shape} hold {labels.shape[:1]}; both must be of the same batch"
        )
    return features, labels, weights, axis


def checked_references(
    references: References, features: jax.Array, axis: int, label_shape: tuple[int, ...] = ()
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """References `[M, C]`, their labels, and their weights.

    Args:
        references: as in `supcon_loss`.
        features: of the anchors.
        axis: the features' axis.
        label_shape: of the label of one anchor: `()`, or `(K,)`.

    Raises:
        ValueError: they do not fit the features and labels.
    """
    table, of_table, *where = references
    table, of_table = jnp.asarray(table), known_array(of_table)
    channels, expected = features.shape[axis], (len(table), *label_shape)
    if table.ndim != 2 or table.shape[1] != channels or of_table.shape != expected:
        raise ValueError(
            f"references have features of shape {table.shape} and labels of shape "
            f"{of_table.shape}; for features of shape {features.shape} and these labels they must "
            f"be [M, {channels}] and {['M', *label_shape]}"
        )
    return (
        table.astype(features.dtype),
        of_table,
        check_where(where[0] if where else None, of_table),
    )


def _examples(
    features: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None,
    axis: int,
    positives: Positives | None,
) -> Examples:
    x = spatial_mean(features, weights, axis % features.ndim, signed=True)
    w = jnp.ones(x.shape[0], x.dtype) if weights is None else weights.astype(x.dtype)
    if positives is None:
        labels, there = _classes(labels, w)
        w = jnp.where(there, w, jnp.zeros_like(w))
    elif labels.dtype.itemsize < 4:  # they travel in words of 32 bits
        wider = jnp.float32 if jnp.issubdtype(labels.dtype, jnp.floating) else jnp.int32
        labels = labels.astype(wider)
    return Examples(x, labels, w, jnp.arange(x.shape[0]))


def _stacked(several: list[Examples]) -> Examples:
    def stacked(*parts: jax.Array) -> jax.Array:
        wider = functools.reduce(jnp.promote_types, [x.dtype for x in parts])
        return jnp.concatenate([x.astype(wider) for x in parts])

    return several[0] if len(several) == 1 else jax.tree.map(stacked, *several)


def cosine(x: jax.Array, y: jax.Array, precision: Precision = "highest") -> jax.Array:
    """`[n, N]` cosines of `[n, C]` and `[N, C]`; 0 for rows of zeros."""
    return _product(unit_vectors(x), unit_vectors(y), precision)


def cosine_at(precision: Precision) -> Compare:
    """`cosine` with products of a precision, which matters on TPUs and GPUs."""
    return partial(cosine, precision=precision)


def unit_vectors(x: jax.Array) -> jax.Array:
    """Rows divided by their lengths; a row of zeros stays, with zero gradient.

    Rows are first scaled by a constant, so that no square leaves the range of the type.
    """
    largest = lax.stop_gradient(jnp.abs(x).max(axis=-1, keepdims=True))
    safe = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    scaled = x / safe
    square = jnp.square(scaled).sum(axis=-1, keepdims=True)
    return scaled * lax.rsqrt(jnp.where(largest > 0, square, jnp.ones_like(square)))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def squared_distance(x: jax.Array, y: jax.Array, precision: Precision = "highest") -> jax.Array:
    """`[n, N]` squared Euclidean distances of `[n, C]` and `[N, C]`, sums of squared differences.

    The expansion `|x|^2 - 2 xy + |y|^2` would lose precision for narrow clusters far from 0. The
    derivative uses products, which need no `[n, N, C]` array.
    """
    return jnp.square(x[:, None, :] - y[None, :, :]).sum(axis=2)


@squared_distance.defjvp
def _squared_distance_jvp(
    precision: Precision,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """`2 (x - y) (dx - dy)`, with both shifted by the mean of `y`: rounding errors shrink."""
    (x, y), (dx, dy) = primals, tangents
    centre = lax.stop_gradient(y.mean(axis=0, keepdims=True))
    near_x, near_y = x - centre, y - centre
    of_own = (near_x * dx).sum(axis=1)[:, None] + (near_y * dy).sum(axis=1)[None, :]
    crossed = _product(dx, near_y, precision) + _product(near_x, dy, precision)
    return squared_distance(x, y, precision), 2 * (of_own - crossed)


def distance(x: jax.Array, y: jax.Array, precision: Precision = "highest") -> jax.Array:
    """`[n, N]` Euclidean distances of `[n, C]` and `[N, C]`, with zero gradient at 0."""
    square = squared_distance(x, y, precision)
    apart = ~(square <= 0)  # NaN stays NaN
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, jnp.ones_like(square))), 0.0)


def masked_logsumexp(values: jax.Array, mask: jax.Array) -> jax.Array:
    """`[n]`: over the entries of `[n, N]` in the mask; about `-far` where there is none."""
    kept = jnp.where(mask, values, jnp.full_like(values, -far(values)))
    largest = lax.stop_gradient(kept.max(axis=1))
    return largest + jnp.log(jnp.exp(kept - largest[:, None]).sum(axis=1))


def _product(x: jax.Array, y: jax.Array, precision: Precision = "highest") -> jax.Array:
    return jnp.einsum("nc,mc->nm", x, y, precision=lax.Precision(precision))


def _rows(
    compare: Compare, anchors: Examples, everyone: Examples, positives: Positives | None
) -> Rows:
    negative: Any = None
    if positives is not None:
        found = positives(anchors.labels, everyone.labels)
        same, negative = found if isinstance(found, tuple) else (found, None)
    elif anchors.labels.ndim == 1:
        same = anchors.labels[:, None] == everyone.labels[None, :]
    else:  # bits of the classes
        same = ((anchors.labels[:, None] & everyone.labels[None, :]) != 0).any(axis=-1)
    shape = anchors.labels.shape[0], everyone.labels.shape[0]
    for table in (same, same if negative is None else negative):
        if table.shape != shape or table.dtype != bool:
            raise ValueError(
                f"positives returned {table.dtype} of shape {table.shape}; it must return a "
                f"boolean table, here {shape}, or a pair of them: positives and negatives"
            )
    other = anchors.example_index[:, None] != everyone.example_index[None, :]
    there = everyone.weights[None, :] > 0
    apart = ~same if negative is None else negative & ~same & other
    values = compare(anchors.features, everyone.features)
    return Rows(values, same & other & there, apart & there)


def _classes(labels: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What says which examples share a class, and `[n]` whether an example has one at all.

    It is `[n]` integers; or, of rows, `[n, W]` words whose bits are the classes with the row's
    largest share. Those of rows of weight 0, which may hold NaN, mean nothing.
    """
    if labels.ndim == 1:
        classes = of_32_bits(labels)
        return classes, classes >= 0
    rows = jnp.where((weights != 0)[:, None], labels, jnp.zeros_like(labels))
    own = (rows > 0) & (rows == rows.max(axis=1, keepdims=True))
    padded = jnp.pad(own, [(0, 0), (0, -own.shape[1] % 32)]).reshape(len(own), -1, 32)
    places = jnp.left_shift(jnp.uint32(1), jnp.arange(32, dtype=jnp.uint32))
    return jnp.where(padded, places, jnp.uint32(0)).sum(axis=2, dtype=jnp.uint32), own.any(axis=1)


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


def check_chunk_size(chunk_size: int | None) -> None:
    """Refuses what is no number of rows at a time.

    Raises:
        ValueError: it is neither None nor a positive integer.
    """
    whole = isinstance(chunk_size, (int, np.integer)) and chunk_size >= 1
    if chunk_size is not None and not whole:
        raise ValueError(f"chunk_size={chunk_size!r}; it must be a positive integer, or None")


def in_chunks(of_rows: Callable[[Any], jax.Array], rows: Any, chunk_size: int | None) -> jax.Array:
    """`of_rows(rows)`, `[n, ...]`, of a pytree of `[n, ...]`, a few rows at a time.

    The chunks are computed again in the backward pass, so that it keeps no table of pairs. The last
    one may hold further rows of zeros, whose result is dropped.
    """
    count = len(jax.tree.leaves(rows)[0])
    if chunk_size is None or chunk_size >= count:
        return of_rows(rows)
    padding = -count % chunk_size

    def chunked(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(-1, chunk_size, *x.shape[1:])

    found = lax.map(jax.checkpoint(of_rows), jax.tree.map(chunked, rows))
    return found.reshape(-1, *found.shape[2:])[:count]
