"""Center loss: features near the means of their classes."""

import jax

from gini_jax.losses.class_sums import ratio
from gini_jax.losses.moments import FeatureMoments, as_moments
from gini_jax.losses.rules import AxisName


def center_loss(
    features: jax.Array | FeatureMoments,
    labels: jax.Array | None = None,
    *,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
) -> jax.Array:
    """Half the mean squared distance of the features from the means of their classes.

    `center = 1/2 sum_nk w[n] Y[n,k] |x[n] - mean[k]|^2 / sum_n w[n]`, summed over the features.

    The centres are the class means of the batch, where the paper moves them a step at a time; those
    of `RunningSums` reach further back. The gradient through the centres is zero, as a mean is
    where the sum of squared distances is smallest.

    Args:
        features: `[N, ..., C]` activations of any float type; their mean over spatial or token axes
            is taken. Or the `FeatureMoments` of a batch, without labels.
        labels: `[N, K]` one-hot or soft rows, or `[N]` integers together with `num_classes`.
        num_classes: `K`; needed for integer labels only.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to sum over.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.

    Returns:
        Scalar, not negative: 0 if all examples of a class are equal. As a square, it leaves the
        range of float32 where features are above about 1e18.

    Raises:
        ValueError: the shapes do not fit, or integer labels come without `num_classes`.
        TypeError: the features are not floating-point.

    References:
        Wen, Zhang, Li, Qiao, "A discriminative feature learning approach for deep face
        recognition", 2016, equation 2.

    Examples:
        >>> import jax.numpy as jnp
        >>> x, labels = jnp.array([[0.0], [2.0], [5.0]]), jnp.array([0, 0, 1])
        >>> print(f"{center_loss(x, labels, num_classes=2):.4f}")  # (1 + 1 + 0) / 3 / 2
        0.3333
    """
    moments = as_moments(
        features, labels, num_classes=num_classes, where=where, axis_name=axis_name, axis=axis
    )
    return ratio(moments.within / 2, moments.mass.sum())
