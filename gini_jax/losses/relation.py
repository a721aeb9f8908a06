"""Relation network: a small learned comparator of features with class prototypes."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.config.registry import NotNegative
from gini_jax.losses.class_sums import (
    Reduction,
    label_rows,
    on_any_mesh,
    ratio,
    reduced,
    spatial_mean,
)
from gini_jax.losses.moments import FeatureMoments, feature_moments
from gini_jax.losses.over_pairs import ChunkSize
from gini_jax.losses.pairs import Against, Positives, Precision, References
from gini_jax.losses.rules import AxisName, bounded, check_features, check_where
from gini_jax.losses.triplet import triplet_loss


class Comparator(NamedTuple):
    """Parameters of a network with one hidden layer that maps two vectors to a score.

    Attributes:
        first: `[C, H]`, of the first vector.
        second: `[C, H]`, of the second.
        bias: `[H]`.
        out: `[H]`.
        out_bias: scalar.
    """

    first: jax.Array
    second: jax.Array
    bias: jax.Array
    out: jax.Array
    out_bias: jax.Array

    @classmethod
    def create(cls, key: jax.Array, channels: int, hidden: int = 64) -> "Comparator":
        """Random parameters, of the variance that ReLU layers need (He et al., 2015)."""
        keys = jax.random.split(key, 3)
        scale = jnp.sqrt(1.0 / channels)  # 2 / fan-in, of 2 C inputs
        first = scale * jax.random.normal(keys[0], (channels, hidden))
        second = scale * jax.random.normal(keys[1], (channels, hidden))
        out = jnp.sqrt(1.0 / hidden) * jax.random.normal(keys[2], (hidden,))
        return cls(first, second, jnp.zeros(hidden), out, jnp.zeros(()))


def relation_scores(
    comparator: Comparator, x: jax.Array, y: jax.Array, precision: Precision = "highest"
) -> jax.Array:
    """How related each `x` is to each `y`, between 0 and 1.

    `sigmoid(out . relu(x first + y second + bias) + out_bias)`; memory is `O(n m H)`.

    Args:
        comparator: the learned parameters.
        x: `[n, C]`.
        y: `[m, C]`, such as class prototypes.
        precision: of the products, on TPUs and GPUs.

    Returns:
        `[n, m]`.

    References:
        Sung et al., "Learning to compare: relation network for few-shot learning", 2018 (arXiv
        1711.06025), section 3.2: the relation module.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> comparator = Comparator.create(jax.random.key(0), channels=3)
        >>> relation_scores(comparator, jnp.ones((5, 3)), jnp.zeros((2, 3))).shape
        (5, 2)
    """
    dot = partial(jnp.dot, precision=lax.Precision(precision))
    of_x, of_y = dot(x, comparator.first), dot(y, comparator.second)
    hidden = jax.nn.relu(of_x[:, None, :] + of_y[None, :, :] + comparator.bias[None, None, :])
    return jax.nn.sigmoid(dot(hidden, comparator.out) + comparator.out_bias)


def relation_loss(
    features: jax.Array,
    labels: jax.Array,
    comparator: Comparator,
    *,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
    reduction: Reduction = "mean",
) -> Any:
    """Mean squared error of the scores of features and class prototypes.

    `relation = mean over n and the classes k of the batch of (score[n,k] - Y[n,k])^2`, where a
    prototype is the mean of a class in the global batch.

    Args:
        features: `[N, ..., C]` activations of any float type; their mean over spatial or token axes
            is taken.
        labels: `[N, K]` one-hot or soft rows, or `[N]` integers together with `num_classes`.
        comparator: parameters to learn together with the network.
        num_classes: `K`; needed for integer labels only.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to sum over.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.
        reduction: `"mean"`; or `"none"`, to get values of the examples.

    Returns:
        Scalar in `[0, 1]`. With `reduction="none"`, `[N]` values and the mask of those that count;
        their mean, over all devices, is the scalar.

    Raises:
        ValueError: the shapes do not fit, or integer labels come without `num_classes`.
        TypeError: the features are not floating-point.

    References:
        Sung et al., "Learning to compare: relation network for few-shot learning", 2018 (arXiv
        1711.06025), equation 2.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> blind = jax.tree.map(jnp.zeros_like, Comparator.create(jax.random.key(0), channels=2))
        >>> float(relation_loss(jnp.eye(2), jnp.eye(2), blind))  # every score is 1/2
        0.25
    """
    moments = feature_moments(  # which checks the shapes
        features, labels, num_classes=num_classes, where=where, axis_name=axis_name, axis=axis
    )
    features, labels = jnp.asarray(features), jnp.asarray(labels)
    axis, weights = check_features(features, axis), check_where(where, labels)
    if features.shape[axis] != comparator.first.shape[0]:
        raise ValueError(
            f"the comparator is for {comparator.first.shape[0]} features; those of shape "
            f"{features.shape} have {features.shape[axis]}"
        )

    def loss(
        features: jax.Array,
        labels: jax.Array,
        weights: jax.Array | None,
        comparator: Comparator,
        moments: FeatureMoments,
    ) -> Any:
        x = spatial_mean(features, weights, axis, signed=True)
        rows, w = label_rows(labels, weights, moments.mass.shape[0], x.dtype)
        errors = jnp.square(relation_scores(comparator, x, moments.means.T) - rows)
        present = moments.present.astype(x.dtype)
        each = ratio((errors * present[None, :]).sum(axis=1), present.sum())
        return reduced(w * each, w, axis_name, reduction)

    return on_any_mesh(loss, features, labels, weights, comparator, moments)


@bounded
def relation_triplet_loss(
    features: jax.Array,
    labels: jax.Array,
    comparator: Comparator,
    *,
    margin: NotNegative = 0.5,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
    chunk_size: ChunkSize = None,
    references: References | None = None,
    against: Against = "batch",
    positives: Positives | None = None,
    precision: Precision = "highest",
    reduction: Reduction = "mean",
) -> Any:
    """Triplet loss over relation scores: an example relates more to its class than to others.

    `triplet_loss` with hardest triplets and the distance `1 - score`; see `relation_scores`.

    Args:
        features: `[N, ..., C]` activations of any float type; their mean over spatial or token axes
            is taken.
        labels: `[N]` integers, or `[N, K]` one-hot or soft rows.
        comparator: parameters to learn together with the network.
        margin: by how much the score of a pair of one class shall exceed that of other pairs.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes that the batch is divided over.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.
        chunk_size: anchors at a time: memory is `O(chunk_size N H)`; all at once by default.
        references: as in `triplet_loss`.
        against: as in `triplet_loss`.
        positives: as in `triplet_loss`.
        precision: of the products, on TPUs and GPUs.
        reduction: as in `triplet_loss`.

    Returns:
        Scalar, not negative.

    Raises:
        ValueError: the shapes do not fit.
        TypeError: the features are not floating-point.

    References:
        The relation discriminator's loss of Relation GANs (arXiv 2002.10174), with labels in the
        place of real and generated.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> blind = jax.tree.map(jnp.zeros_like, Comparator.create(jax.random.key(0), channels=2))
        >>> labels = jnp.array([0, 0, 1, 1])
        >>> float(relation_triplet_loss(jnp.ones((4, 2)), labels, blind))  # the margin
        0.5
    """

    def distance(x: jax.Array, y: jax.Array) -> jax.Array:
        return 1.0 - relation_scores(comparator, x, y, precision)

    return triplet_loss(
        features,
        labels,
        margin=margin,
        distance=distance,
        where=where,
        axis_name=axis_name,
        axis=axis,
        chunk_size=chunk_size,
        references=references,
        against=against,
        positives=positives,
        precision=precision,
        reduction=reduction,
    )
