"""Cross-entropy with a margin, on the cosines of a normalised head."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gini_jax.config.registry import NotNegative, Positive
from gini_jax.losses.class_sums import Reduction
from gini_jax.losses.logits import mean_over_examples
from gini_jax.losses.rules import Angle, AxisName, bounded, check_cosines, check_where, known_array


@bounded
def cosface_loss(
    cosines: jax.Array,
    labels: jax.Array,
    *,
    scale: Positive = 64.0,
    margin: NotNegative = 0.35,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    reduction: Reduction = "mean",
) -> Any:
    """Cross-entropy of `scale cos` after a margin was taken from the cosine of the right class.

    `cosface = mean_n -log softmax_k(scale (cos[n,k] - margin Y[n,k]))[y_n]`.

    Args:
        cosines: `[N, K]` of the features and the classes' weight vectors, of any float type.
        labels: `[N, K]` one-hot or soft rows, or `[N]` integers.
        scale: what cosines are multiplied by.
        margin: what is taken from the right class's cosine; 0 gives plain cross-entropy.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to average over.
        reduction: `"mean"`; or `"none"`, to get values of the examples.

    Returns:
        Scalar, not negative; 0 if all weights are 0. With `reduction="none"`, `[N]` values and the
        mask of those that count; their mean, over all devices, is the scalar.

    Raises:
        ValueError: the shapes do not fit, a setting is out of bounds, or a known cosine or label
            is invalid; see `checked`.
        TypeError: the cosines are not floating-point.

    References:
        Wang et al., "CosFace: large margin cosine loss for deep face recognition", 2018 (arXiv
        1801.09414), equation 4.

    Examples:
        >>> import jax.numpy as jnp
        >>> loss = cosface_loss(jnp.array([[1.0, 0.5]]), jnp.array([0]), scale=1.0, margin=0.5)
        >>> print(f"{loss:.4f}")  # log 2
        0.6931
    """

    def target(cosines: jax.Array) -> jax.Array:
        return cosines - margin

    return _margin_loss(target, cosines, labels, scale, where, axis_name, reduction)


@bounded
def arcface_loss(
    cosines: jax.Array,
    labels: jax.Array,
    *,
    scale: Positive = 64.0,
    margin: Angle = 0.5,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    reduction: Reduction = "mean",
) -> Any:
    """Cross-entropy of `scale cos` after a margin was added to the angle to the right class.

    `arcface = mean_n -log softmax_k(scale cos(angle[n,k] + margin Y[n,k]))[y_n]`. Beyond the angle
    `pi - margin`, where the cosine would rise again, it falls on by a straight line.

    Args:
        cosines: `[N, K]` of the features and the classes' weight vectors, of any float type.
        labels: `[N, K]` one-hot or soft rows, or `[N]` integers.
        scale: what cosines are multiplied by.
        margin: what is added to the angle to the right class, in radians, from 0, which gives plain
            cross-entropy, to pi / 2.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to average over.
        reduction: `"mean"`; or `"none"`, to get values of the examples.

    Returns:
        Scalar, not negative; 0 if all weights are 0. With `reduction="none"`, `[N]` values and the
        mask of those that count; their mean, over all devices, is the scalar.

    Raises:
        ValueError: the shapes do not fit, a setting is out of bounds, or a known cosine or label
            is invalid; see `checked`.
        TypeError: the cosines are not floating-point.

    References:
        Deng et al., "ArcFace: additive angular margin loss for deep face recognition", 2019 (arXiv
        1801.07698), equation 3.

    Examples:
        >>> import jax.numpy as jnp
        >>> cosines = jnp.array([[1.0, 0.5]])
        >>> loss = arcface_loss(cosines, jnp.array([0]), scale=1.0, margin=jnp.pi / 3)
        >>> print(f"{loss:.4f}")  # cos(pi / 3) = 0.5: log 2
        0.6931
    """
    cos_m, sin_m = jnp.cos(margin), jnp.sin(margin)

    def target(cosines: jax.Array) -> jax.Array:
        square = 1.0 - jnp.square(cosines)
        sines = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
        turned = cosines * cos_m - sines * sin_m  # cos(angle + margin)
        return jnp.where(cosines > -cos_m, turned, cosines - margin * sin_m)

    return _margin_loss(target, cosines, labels, scale, where, axis_name, reduction)


def _margin_loss(
    target: Callable[[jax.Array], jax.Array],
    cosines: jax.Array,
    labels: jax.Array,
    scale: float,
    where: jax.Array | None,
    axis_name: AxisName | None,
    reduction: Reduction,
) -> Any:
    """Cross-entropy in which `target` transforms the cosine of the example's class."""
    cosines, labels = known_array(cosines), known_array(labels)
    if cosines.ndim == 2 and labels.shape[:1] == cosines.shape[:1]:
        check_cosines(cosines, labels, check_where(where, labels))

    def each(cosines: jax.Array, rows: jax.Array) -> jax.Array:
        # For soft rows the margin is shared out as the label is.
        logits = scale * (cosines + rows * (target(cosines) - cosines))
        return -(rows * jax.nn.log_softmax(logits, axis=1)).sum(axis=1)

    return mean_over_examples(each, cosines, labels, where, axis_name, reduction)
