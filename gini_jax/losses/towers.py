"""Losses of two towers: the rows of one table belong with the same rows of another."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.class_sums import Reduction, on_any_mesh, reduced, sum_type
from gini_jax.losses.mapped import varying_like
from gini_jax.losses.over_pairs import ChunkSize
from gini_jax.losses.pairs import Precision, check_chunk_size, cosine, far, in_chunks
from gini_jax.losses.rules import AxisName, bounded, check_features, check_where


@bounded
def clip_loss(
    first: jax.Array,
    second: jax.Array,
    scale: jax.Array | float,
    *,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    chunk_size: ChunkSize = None,
    precision: Precision = "highest",
    reduction: Reduction = "mean",
) -> Any:
    """Contrastive loss of two towers: each row finds its partner among all rows of the other tower.

    `clip = mean_i (-log softmax_j(scale s[i,j])[i] - log softmax_j(scale s[j,i])[i]) / 2`, with the
    cosines `s` of the rows of `first` and `second`.

    Args:
        first: `[N, C]` embeddings, such as of images.
        second: `[N, C]` embeddings of their partners, such as of texts.
        scale: what cosines are multiplied by, usually the exponential of a parameter.
        where: `[N]` mask, or weights of the pairs; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes that the pairs are divided over.
        chunk_size: rows at a time: memory is `O(chunk_size N)`; all at once by default.
        precision: of the products, on TPUs and GPUs.
        reduction: `"mean"`; or `"none"`, to get values of the rows of `first`.

    Returns:
        Scalar, not negative. With `reduction="none"`, `[N]` values and the mask of those that
        count; their mean, over all devices, is the scalar.

    Raises:
        ValueError: the shapes differ or do not fit.
        TypeError: the embeddings are not floating-point.

    References:
        Radford et al., "Learning transferable visual models from natural language supervision",
        2021 (arXiv 2103.00020), figure 3.

    Examples:
        >>> import jax.numpy as jnp
        >>> print(f"{clip_loss(jnp.eye(2), jnp.eye(2), scale=1.0):.4f}")  # log(1 + 1 / e)
        0.3133
    """
    first, second, weights = _checked(first, second, where)
    check_chunk_size(chunk_size)

    def loss(first: jax.Array, second: jax.Array, scale: Any, weights: Any) -> Any:
        x, y, w = _clean(first, second, weights)
        n = len(x)
        all_x, all_y, all_w, start = x, y, w, jnp.zeros((), int)
        if axis_name is not None:
            all_x, all_y, all_w = lax.all_gather((x, y, w), axis_name, tiled=True)
            start = lax.axis_index(axis_name) * n
        own = start + jnp.arange(n)

        def among(others: jax.Array, given: tuple[jax.Array, jax.Array]) -> jax.Array:
            rows, partners = given
            logits = scale * cosine(rows, others, precision)
            kept = jnp.where(all_w[None, :] > 0, logits, -far(logits))
            right = jnp.take_along_axis(logits, partners[:, None], axis=1)[:, 0]
            return jax.nn.logsumexp(kept, axis=1) - right

        found_by_x = in_chunks(partial(among, all_y), (x, own), chunk_size)
        total = (found_by_x + in_chunks(partial(among, all_x), (y, own), chunk_size)) / 2
        total = jnp.where(w > 0, total, jnp.zeros_like(total))
        return reduced(w * total, w, axis_name, reduction)

    return on_any_mesh(loss, first, second, jnp.asarray(scale), weights)


@bounded
def siglip_loss(
    first: jax.Array,
    second: jax.Array,
    scale: jax.Array | float,
    bias: jax.Array | float,
    *,
    where: jax.Array | None = None,
    axis_name: str | None = None,
    chunk_size: ChunkSize = None,
    precision: Precision = "highest",
    reduction: Reduction = "mean",
) -> Any:
    """Sigmoid loss of two towers: each pair of rows is classified as partners or not.

    `siglip = sum_ij -log sigmoid(z[i,j] (scale s[i,j] + bias)) / N`, with `z` 1 for partners and -1
    for all others, and the cosines `s` of the rows of `first` and `second`.

    Over several devices the rows of `second` go around the ring of devices: no device holds more of
    others than `[n, C]` at a time.

    Args:
        first: `[N, C]` embeddings, such as of images.
        second: `[N, C]` embeddings of their partners, such as of texts.
        scale: what cosines are multiplied by, usually the exponential of a parameter.
        bias: what is added, usually a parameter that starts at -10.
        where: `[N]` mask, or weights of the rows of `first`; 1 by default. Rows of weight 0 are
            left out altogether, and may hold NaN.
        axis_name: name of the mapped axis that the pairs are divided over.
        chunk_size: rows at a time: memory is `O(chunk_size N)`; all at once by default.
        precision: of the products, on TPUs and GPUs.
        reduction: `"mean"`; or `"none"`, to get values of the rows of `first`.

    Returns:
        Scalar, not negative. With `reduction="none"`, `[N]` values and the mask of those that
        count; their mean, over all devices, is the scalar.

    Raises:
        ValueError: the shapes differ or do not fit.
        TypeError: the embeddings are not floating-point.

    References:
        Zhai, Mustafa, Kolesnikov, Beyer, "Sigmoid loss for language image pre-training", 2023
        (arXiv 2303.15343), equation 1 and algorithm 1; section 3.3 for the ring.

    Examples:
        >>> import jax.numpy as jnp
        >>> loss = siglip_loss(jnp.eye(2), jnp.eye(2), scale=1.0, bias=0.0)
        >>> print(f"{loss:.4f}")  # log(1 + 1 / e) + log 2
        1.0064
    """
    first, second, weights = _checked(first, second, where)
    check_chunk_size(chunk_size)

    def loss(first: Any, second: Any, scale: Any, bias: Any, weights: Any) -> Any:
        x, y, w = _clean(first, second, weights)
        own = jnp.arange(len(x))

        def of_block(others: jax.Array, there: jax.Array, partners: jax.Array) -> jax.Array:
            def of_rows(given: tuple[jax.Array, jax.Array]) -> jax.Array:
                rows, partner = given
                logits = scale * cosine(rows, others, precision) + bias
                signed = jnp.where(partner[:, None] == own[None, :], logits, -logits)
                each = -jax.nn.log_sigmoid(signed)
                return jnp.where(there[None, :] > 0, each, jnp.zeros_like(each)).sum(axis=1)

            return in_chunks(of_rows, (x, partners), chunk_size)

        total = of_block(y, w, own)
        if axis_name is not None:
            devices = lax.axis_size(axis_name)
            ring = [(i, (i + 1) % devices) for i in range(devices)]
            none = jnp.full_like(own, -1)

            @jax.checkpoint
            def next_block(visitors: Any, _: None) -> tuple[Any, jax.Array]:
                visitors = lax.ppermute(visitors, axis_name, ring)
                return visitors, of_block(visitors[0], visitors[1], none)

            visitors = varying_like((y, w), (x, y))
            _, more = lax.scan(next_block, visitors, None, length=devices - 1)
            total = total + more.sum(axis=0)
        total = jnp.where(w > 0, total, jnp.zeros_like(total))
        return reduced(w * total, w, axis_name, reduction)

    return on_any_mesh(loss, first, second, jnp.asarray(scale), jnp.asarray(bias), weights)


def _checked(first: Any, second: Any, where: Any) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    first, second = jnp.asarray(first), jnp.asarray(second)
    check_features(first, -1)
    check_features(second, -1)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"the towers have shapes {first.shape} and {second.shape}; both must be the same [N, C]"
        )
    return first, second, check_where(where, first)


def _clean(
    first: jax.Array, second: jax.Array, weights: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows in the type of the sums, with zeros where the weight is 0, and the weights."""
    dtype = sum_type(first.dtype)
    w = jnp.ones(len(first), dtype) if weights is None else weights.astype(dtype)
    there = (w != 0)[:, None]
    x, y = (jnp.where(there, x.astype(dtype), 0.0) for x in (first, second))
    return x, y, w
