"""Island loss: class means in different directions."""

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.from_sums import on_features
from gini_jax.losses.moments import FeatureMoments, feature_moments
from gini_jax.losses.pairs import unit_vectors


@on_features(FeatureMoments, feature_moments)
def island_loss(moments: FeatureMoments) -> jax.Array:
    """Mean cosine between the means of two classes, plus 1.

    `island = mean over pairs k != j of (cos(mean[k], mean[j]) + 1)`, over the classes of the batch.

    The paper adds it to the center loss: together they make classes narrow and far apart.

    Returns:
        Scalar in `[0, 2]`: 1 for orthogonal class means, `1 - 1 / (K - 1)` at best for `K` classes.
        0, with zero gradient, for fewer than two classes.

    References:
        Cai, Meng, Khan, Li, O'Reilly, Tong, "Island loss for learning discriminative features in
        facial expression recognition", 2018 (arXiv 1710.03144), equation 6; the mean over pairs
        where the paper has their sum.

    Examples:
        >>> import jax.numpy as jnp
        >>> float(island_loss(jnp.eye(3), jnp.eye(3)))
        1.0
    """
    # sum over pairs of cos = |sum of the unit vectors|^2 - number of classes
    units = unit_vectors(moments.means.T)
    present = (moments.present & (units != 0).any(axis=1)).astype(units.dtype)
    classes = present.sum()
    pairs = jnp.maximum(classes * (classes - 1), 1.0)
    cosines = jnp.square(jnp.dot(present, units, precision=lax.Precision.HIGHEST)).sum() - classes
    return jnp.where(classes > 1, cosines / pairs + 1, jnp.zeros_like(cosines))
