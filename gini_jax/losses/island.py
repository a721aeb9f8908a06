"""Island loss: class means in different directions."""

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.moments import FeatureMoments, as_moments
from gini_jax.losses.pairs import unit_vectors
from gini_jax.losses.rules import AxisName


def island_loss(
    features: jax.Array | FeatureMoments,
    labels: jax.Array | None = None,
    *,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
) -> jax.Array:
    """Mean cosine between the means of two classes, plus 1.

    `island = mean over pairs k != j of (cos(mean[k], mean[j]) + 1)`, over the classes of the batch.

    The paper adds it to the center loss: together they make classes narrow and far apart.

    Args:
        features: `[N, ..., C]` activations of any float type; their mean over spatial or token axes
            is taken. Or the `FeatureMoments` of a batch, without labels.
        labels: `[N, K]` one-hot or soft rows, or `[N]` integers together with `num_classes`.
        num_classes: `K`; needed for integer labels only.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to sum over.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.

    Returns:
        Scalar in `[0, 2]`: 1 for orthogonal class means, `1 - 1 / (K - 1)` at best for `K` classes.
        0, with zero gradient, for fewer than two classes.

    Raises:
        ValueError: the shapes do not fit, or integer labels come without `num_classes`.
        TypeError: the features are not floating-point.

    References:
        Cai, Meng, Khan, Li, O'Reilly, Tong, "Island loss for learning discriminative features in
        facial expression recognition", 2018 (arXiv 1710.03144), equation 6; the mean over pairs
        where the paper has their sum.

    Examples:
        >>> import jax.numpy as jnp
        >>> float(island_loss(jnp.eye(3), jnp.eye(3)))
        1.0
    """
    moments = as_moments(
        features, labels, num_classes=num_classes, where=where, axis_name=axis_name, axis=axis
    )
    # sum over pairs of cos = |sum of the unit vectors|^2 - number of classes
    units = unit_vectors(moments.means.T)
    present = (moments.present & (units != 0).any(axis=1)).astype(units.dtype)
    classes = present.sum()
    pairs = jnp.maximum(classes * (classes - 1), 1.0)
    cosines = jnp.square(jnp.dot(present, units, precision=lax.Precision.HIGHEST)).sum() - classes
    return jnp.where(classes > 1, cosines / pairs + 1, jnp.zeros_like(cosines))
