"""Cross-entropy on superclasses, and on classes given their superclass."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.config.registry import NotNegative
from gini_jax.losses.class_sums import Reduction
from gini_jax.losses.logits import mean_over_examples
from gini_jax.losses.rules import AxisName, bounded, known_array, of_32_bits, require


@bounded
def hierarchy_loss(
    logits: jax.Array,
    labels: jax.Array,
    superclasses: Sequence[int] | jax.Array,
    *,
    coarse_weight: NotNegative = 1.0,
    fine_weight: NotNegative = 1.0,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    reduction: Reduction = "mean",
) -> Any:
    """Cross-entropy of the superclass, and of the class given its superclass.

    `coarse_weight mean -log P(S) + fine_weight mean -log P(k | S)`, with `P(k)` the softmax of the
    logits and `P(S)` its sum over the classes of a superclass. With both weights 1 it is plain
    cross-entropy, as `P(k) = P(S) P(k | S)`.

    Args:
        logits: `[N, K]` of any float type.
        labels: `[N]` integers, or `[N, K]` one-hot or soft rows.
        superclasses: `[K]` integers in `[0, K)`, the superclass of each class.
        coarse_weight: weight of the superclasses.
        fine_weight: weight of the classes within their superclass.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to average over.
        reduction: `"mean"`; or `"none"`, to get values of the examples.

    Returns:
        Scalar, not negative; 0 if all weights are 0. With `reduction="none"`, `[N]` values and the
        mask of those that count; their mean, over all devices, is the scalar.

    Raises:
        ValueError: the shapes do not fit.

    References:
        The factors of a class's probability along a hierarchy of labels, as in arXiv 2112.10844.

    Examples:
        >>> import jax.numpy as jnp
        >>> logits, labels = jnp.zeros((1, 4)), jnp.array([0])
        >>> coarse = hierarchy_loss(logits, labels, [0, 0, 1, 1], fine_weight=0.0)
        >>> print(f"{coarse:.4f}")  # log 2
        0.6931
    """
    num_classes = jnp.shape(logits)[-1]
    superclasses = known_array(superclasses)
    if superclasses.shape != (num_classes,):
        raise ValueError(
            f"superclasses have shape {superclasses.shape}; they must be [K] = ({num_classes},) "
            "integers, the superclass of each class"
        )
    require(
        f"superclasses hold integers outside [0, {num_classes}); give the superclass of each class",
        lambda of: ((of >= 0) & (of_32_bits(of) < num_classes)).all(),
        superclasses,
    )

    def each(logits: jax.Array, rows: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(logits, axis=1)
        log_s = _of_superclass(log_p, superclasses)
        own = rows != 0  # so that a class that is ruled out, of logit -inf, adds 0
        coarse = -(rows * jnp.where(own, log_s, 0.0)).sum(axis=1)
        fine = -(rows * jnp.where(own, log_p - log_s, 0.0)).sum(axis=1)
        return coarse_weight * coarse + fine_weight * fine

    return mean_over_examples(each, logits, labels, where, axis_name, reduction)


def _of_superclass(log_p: jax.Array, superclasses: jax.Array) -> jax.Array:
    """`[N, K]`: for each class the logarithm of its superclass's probability."""
    count = log_p.shape[1]  # there are at most as many superclasses as classes
    of_class = log_p.T  # [K, N]
    largest = jax.ops.segment_max(lax.stop_gradient(of_class), superclasses, count)
    shifted = jnp.exp(of_class - largest[superclasses])
    total = jax.ops.segment_sum(shifted, superclasses, count)
    return (largest[superclasses] + jnp.log(total[superclasses])).T
