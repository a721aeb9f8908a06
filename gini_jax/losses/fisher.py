"""Fisher's criterion: within-class scatter over between-class scatter."""

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.from_sums import on_features
from gini_jax.losses.moments import FeatureMoments, feature_moments


@on_features(FeatureMoments, feature_moments)
def fisher_loss(moments: FeatureMoments) -> jax.Array:
    """Within-class scatter of the features over their between-class scatter.

    `fisher = tr S_W / tr S_B`, `tr S_W = sum_nk w Y |x - mean[k]|^2`,
    `tr S_B = sum_k mass[k] |mean[k] - mean|^2`. Scaling all features alike leaves it as it is.

    Returns:
        Scalar, not negative: 0 if all examples of a class are equal. It is 0, with zero gradient,
        where the batch has fewer than two classes or all class means are equal, and where features
        are below 1e-15 or above 1e18, whose squares leave the range of float32.

    References:
        R. Fisher, "The use of multiple measurements in taxonomic problems", 1936; the trace form in
        K. Fukunaga, "Introduction to statistical pattern recognition", 1990, section 10.2.

    Examples:
        >>> import jax.numpy as jnp
        >>> x, labels = jnp.array([[-1.0], [1.0], [9.0], [11.0]]), jnp.array([0, 0, 1, 1])
        >>> print(f"{fisher_loss(x, labels, num_classes=2):.4f}")  # (4 * 1) / (4 * 25)
        0.0400
    """
    within, between = moments.within, moments.between
    # The between-class scatter must exceed rounding error, and the squares of numbers of 1e-15.
    apart = (between > 1e-10 * moments.square.sum()) & (between > 1e-30)
    safe = jnp.where(apart, between, jnp.ones_like(between))
    # Scaled: the gradient of a plain quotient holds `between^-2`, which leaves float32's range.
    scale = lax.stop_gradient(1 / safe)
    ratio = (within * scale) / (safe * scale)
    no_ratio = jnp.where(jnp.isnan(between), between, jnp.zeros_like(ratio))
    return jnp.where(apart, ratio, no_ratio)
