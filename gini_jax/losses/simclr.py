"""SimCLR's objective: two views of an image agree behind a small learned projection."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.config.registry import Positive
from gini_jax.losses.class_sums import Reduction, on_any_mesh, spatial_mean
from gini_jax.losses.nt_xent import nt_xent_loss
from gini_jax.losses.over_pairs import ChunkSize
from gini_jax.losses.pairs import Precision, References, checked_references
from gini_jax.losses.rules import AxisName, bounded, check_features, check_where


class Projection(NamedTuple):
    """Parameters of a network of one hidden layer that stands between features and the loss.

    Attributes:
        hidden: `[C, C]`.
        bias: `[C]`.
        out: `[C, D]`.
    """

    hidden: jax.Array
    bias: jax.Array
    out: jax.Array

    @classmethod
    def create(cls, key: jax.Array, channels: int, size: int = 128) -> "Projection":
        """Random parameters, of the variance that ReLU layers need (He et al., 2015)."""
        keys = jax.random.split(key)
        init = jax.nn.initializers.he_normal()
        hidden = init(keys[0], (channels, channels))
        return cls(hidden, jnp.zeros(channels), init(keys[1], (channels, size)))


@bounded
def simclr_loss(
    features: jax.Array,
    labels: jax.Array | None,
    projection: Projection,
    *,
    temperature: Positive = 0.5,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
    chunk_size: ChunkSize = None,
    references: References | None = None,
    precision: Precision = "highest",
    reduction: Reduction = "mean",
) -> Any:
    """NT-Xent loss of projected features, for a batch that holds two views of each image.

    `simclr = nt_xent(z[:n], z[n:])` with `z = relu(x hidden + bias) out` and `x` the features'
    mean over spatial or token axes.

    Args:
        features: `[2 n, ..., C]`: first one view of each image, then the other, in the same order.
        labels: not used; other losses take labels here.
        projection: parameters to learn together with the network.
        temperature: what cosines are divided by.
        where: `[2 n]` mask or weights; an image counts with those of its first view.
        axis_name: name or names of mapped axes that the images are divided over; both views of an
            image lie on one device.
        axis: the feature axis: -1 for channels last, 1 for channels first `[2 n, C, ...]`.
        chunk_size: views at a time: memory is `O(chunk_size n)`; all at once by default.
        references: as in `nt_xent_loss`, before the projection.
        precision: of the products of the views, on TPUs and GPUs.
        reduction: as in `nt_xent_loss`.

    Returns:
        Scalar, not negative.

    Raises:
        ValueError: the number of rows is odd, the shapes do not fit, or the temperature is not
            positive.
        TypeError: the features are not floating-point.

    References:
        Chen, Kornblith, Norouzi, Hinton, "A simple framework for contrastive learning of visual
        representations", 2020 (arXiv 2002.05709), algorithm 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> same = Projection(jnp.eye(2), jnp.zeros(2), jnp.eye(2))
        >>> views = jnp.concatenate([jnp.eye(2), jnp.eye(2)])
        >>> print(f"{simclr_loss(views, None, same, temperature=1.0):.4f}")  # log(1 + 2 / e)
        0.5514
    """
    features = jnp.asarray(features)
    axis = check_features(features, axis)
    if len(features) % 2:
        raise ValueError(
            f"features of shape {features.shape} have an odd number of rows; give both views of "
            "each image: [2 n, ..., C]"
        )
    if features.shape[axis] != len(projection.hidden):
        raise ValueError(
            f"the projection is for {len(projection.hidden)} features; those of shape "
            f"{features.shape} have {features.shape[axis]}"
        )
    weights = check_where(where, features)
    if weights is not None:  # both views of an image count as the first does
        weights = jnp.concatenate([weights[: len(features) // 2]] * 2)

    def projected(x: jax.Array, projection: Projection) -> jax.Array:
        dot = partial(jnp.dot, precision=lax.Precision.HIGHEST)
        hidden = dot(x, projection.hidden) + projection.bias[None]
        return dot(jax.nn.relu(hidden), projection.out)

    def loss(features: Any, projection: Projection, weights: Any, references: Any) -> Any:
        z = projected(spatial_mean(features, weights, axis, signed=True), projection)
        n = len(z) // 2
        of_images = None if weights is None else weights[:n]
        if references is not None:
            references = (projected(references[0].astype(z.dtype), projection), *references[1:])
        options: Any = {"chunk_size": chunk_size, "precision": precision, "reduction": reduction}
        options |= {"where": of_images, "axis_name": axis_name, "references": references}
        return nt_xent_loss(z[:n], z[n:], temperature=temperature, **options)

    if references is not None:
        table, of_table, there = checked_references(references, features, axis)
        references = (table, of_table) if there is None else (table, of_table, there)
    return on_any_mesh(loss, features, projection, weights, references)
