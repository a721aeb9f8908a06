"""Fisher's criterion: within-class scatter over between-class scatter."""

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.moments import FeatureMoments, as_moments
from gini_jax.losses.rules import AxisName


def fisher_loss(
    features: jax.Array | FeatureMoments,
    labels: jax.Array | None = None,
    *,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
) -> jax.Array:
    """Within-class scatter of the features over their between-class scatter.

    `fisher = tr S_W / tr S_B`, `tr S_W = sum_nk w Y |x - mean[k]|^2`,
    `tr S_B = sum_k mass[k] |mean[k] - mean|^2`. Scaling all features alike leaves it as it is.

    Args:
        features: `[N, ..., C]` activations of any float type; their mean over spatial or token axes
            is taken. Or the `FeatureMoments` of a batch, without labels.
        labels: `[N, K]` one-hot or soft rows, or `[N]` integers together with `num_classes`.
        num_classes: `K`; needed for integer labels only.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to sum over.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.

    Returns:
        Scalar, not negative: 0 if all examples of a class are equal. It is 0, with zero gradient,
        where the batch has fewer than two classes or all class means are equal, and where features
        are below 1e-15 or above 1e18, whose squares leave the range of float32.

    Raises:
        ValueError: the shapes do not fit, or integer labels come without `num_classes`.
        TypeError: the features are not floating-point.

    References:
        R. Fisher, "The use of multiple measurements in taxonomic problems", 1936; the trace form in
        K. Fukunaga, "Introduction to statistical pattern recognition", 1990, section 10.2.

    Examples:
        >>> import jax.numpy as jnp
        >>> x, labels = jnp.array([[-1.0], [1.0], [9.0], [11.0]]), jnp.array([0, 0, 1, 1])
        >>> print(f"{fisher_loss(x, labels, num_classes=2):.4f}")  # (4 * 1) / (4 * 25)
        0.0400
    """
    moments = as_moments(
        features, labels, num_classes=num_classes, where=where, axis_name=axis_name, axis=axis
    )
    within, between = moments.within, moments.between
    # More than rounding, and than what the squares of numbers of 1e-15 can tell.
    apart = (between > 1e-10 * moments.square.sum()) & (between > 1e-30)
    safe = jnp.where(apart, between, jnp.ones_like(between))
    # Scaled: the gradient of a plain quotient holds `between^-2`, which leaves float32's range.
    scale = lax.stop_gradient(1 / safe)
    ratio = (within * scale) / (safe * scale)
    no_ratio = jnp.where(jnp.isnan(between), between, jnp.zeros_like(ratio))
    return jnp.where(apart, ratio, no_ratio)
