"""Center loss: features near the means of their classes."""

import jax

from gini_jax.losses.class_sums import ratio
from gini_jax.losses.from_sums import on_features
from gini_jax.losses.moments import FeatureMoments, feature_moments


@on_features(FeatureMoments, feature_moments)
def center_loss(moments: FeatureMoments) -> jax.Array:
    """Half the mean squared distance of the features from the means of their classes.

    `center = 1/2 sum_nk w[n] Y[n,k] |x[n] - mean[k]|^2 / sum_n w[n]`, summed over the features.

    The centres are the class means of the batch, while the paper moves centres a step at a time;
    with `RunningSums`, the means also cover earlier batches. The gradient through the centres is
    zero, because the mean minimises the sum of squared distances.

    Returns:
        Scalar, not negative: 0 if all examples of a class are equal. As a square, it leaves the
        range of float32 where features are above about 1e18.

    References:
        Wen, Zhang, Li, Qiao, "A discriminative feature learning approach for deep face
        recognition", 2016, equation 2.

    Examples:
        >>> import jax.numpy as jnp
        >>> x, labels = jnp.array([[0.0], [2.0], [5.0]]), jnp.array([0, 0, 1])
        >>> print(f"{center_loss(x, labels, num_classes=2):.4f}")  # (1 + 1 + 0) / 3 / 2
        0.3333
    """
    return ratio(moments.within / 2, moments.mass.sum())
