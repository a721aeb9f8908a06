"""The loss of SimCLR: each of two views of an image finds the other one."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.config.registry import Positive
from gini_jax.losses.class_sums import Reduction
from gini_jax.losses.over_pairs import ChunkSize
from gini_jax.losses.pairs import Precision, References
from gini_jax.losses.rules import AxisName, bounded
from gini_jax.losses.supcon import supcon_loss


@bounded
def nt_xent_loss(
    first: jax.Array,
    second: jax.Array,
    *more: jax.Array,
    temperature: Positive = 0.1,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
    chunk_size: ChunkSize = None,
    references: References | None = None,
    precision: Precision = "highest",
    reduction: Reduction = "mean",
) -> Any:
    """Normalised, temperature-scaled cross-entropy of two views, over the global batch.

    `nt_xent = mean over views i of -log(exp s[i,j(i)] / sum over a != i of exp s[i,a])`, where
    `j(i)` is the other view of the same image and `s` are cosines over the temperature. It is
    `supcon_loss` of `2 N` examples whose classes are the images; with more than two views, each is
    the mean over the others of its image.

    Args:
        first: `[N, ..., C]` features of one view of each image.
        second: `[N, ..., C]` features of another view, in the same order.
        *more: further views, likewise.
        temperature: what cosines are divided by.
        where: `[N]` mask, or weights of the images; 1 by default.
        axis_name: name or names of mapped axes that the batch is divided over.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.
        chunk_size: anchors at a time: memory is `O(chunk_size N)`; all at once by default.
        references: `(features [M, C], labels [M])`, and a mask `[M]` if some do not count: views of
            other images, the same on all devices, such as those of a `Queue`. A label says nothing
            but, where it is negative, that the row does not count.
        precision: of the products, on TPUs and GPUs.
        reduction: `"mean"`; or `"none"`, to get values of the views.

    Returns:
        Scalar, not negative. With `reduction="none"`, `[2 N]` values of the views, first those of
        `first`, and the mask of those that count; the mean of these is the scalar.

    Raises:
        ValueError: the shapes differ or do not fit, or the temperature is not positive.
        TypeError: the features are not floating-point.

    References:
        Chen, Kornblith, Norouzi, Hinton, "A simple framework for contrastive learning of visual
        representations", 2020 (arXiv 2002.05709), equation 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> print(f"{nt_xent_loss(jnp.eye(2), jnp.eye(2), temperature=1.0):.4f}")  # log(1 + 2 / e)
        0.5514
    """
    views = [jnp.asarray(view) for view in (first, second, *more)]
    if len({view.shape for view in views}) > 1:
        shapes = " and ".join(str(view.shape) for view in views)
        raise ValueError(f"the views have shapes {shapes}; they must be the same")
    first = views[0]
    images: Any = jnp.arange(first.shape[0])
    if axis_name is not None:
        images = images + lax.axis_index(axis_name) * first.shape[0]
    if references is not None:
        table, of_table, *rest = references
        others = jnp.where(jnp.asarray(of_table) < 0, -1, jnp.iinfo(jnp.int32).max)
        references = (table, others, *rest)  # type: ignore[assignment]
    all_where = None if where is None else jnp.concatenate([jnp.asarray(where)] * len(views))
    return supcon_loss(
        jnp.concatenate(views),
        jnp.concatenate([images] * len(views)),
        temperature=temperature,
        where=all_where,
        axis_name=axis_name,
        axis=axis,
        chunk_size=chunk_size,
        references=references,
        precision=precision,
        reduction=reduction,
    )
