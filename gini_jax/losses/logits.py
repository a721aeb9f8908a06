"""Means over the global batch of what is a function of an example's logits and label."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gini_jax.losses.class_sums import Reduction, label_rows, on_any_mesh, reduced, sum_type
from gini_jax.losses.rules import AxisName, check_label_values, check_where, known_array


def mean_over_examples(
    each: Callable[[jax.Array, jax.Array], jax.Array],
    logits: Any,
    labels: Any,
    where: Any = None,
    axis_name: AxisName | None = None,
    reduction: Reduction = "mean",
) -> Any:
    """The weighted mean of a loss of single examples; 0 if all weights are 0.

    Args:
        each: from `[n, K]` logits and `[n, K]` label rows, both float32 or float64, to `[n]`.
        logits: `[N, K]`; cosines likewise.
        labels: `[N]` integers, or `[N, K]` one-hot or soft rows. A negative integer leaves the
            example out.
        where: `[N]` mask or example weights. Rows of weight 0 may hold NaN.
        axis_name: the mapped axes to average over.
        reduction: `"mean"`; or `"none"`: `[N]` values, in which the weights are factors, and the
            `[N]` mask of those that count, whose mean is the scalar.

    Raises:
        ValueError: the shapes do not fit.
        TypeError: the logits are not floating-point.
    """
    logits, labels = jnp.asarray(logits), known_array(labels)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"logits have type {logits.dtype}; they must be floating-point [N, K]")
    integers = labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer)
    rows_fit = labels.shape == logits.shape or (integers and labels.shape == logits.shape[:1])
    if logits.ndim != 2 or not rows_fit:
        raise ValueError(
            f"logits have shape {logits.shape}, labels {labels.shape} and type {labels.dtype}; "
            "they must be [N, K], and [N] integers or [N, K] rows"
        )
    weights = check_where(where, labels)
    check_label_values(labels, logits.shape[1], weights)

    def mean(logits: jax.Array, labels: jax.Array, weights: jax.Array | None) -> Any:
        logits = logits.astype(sum_type(logits.dtype))
        rows, w = label_rows(labels, weights, logits.shape[1], logits.dtype)
        if weights is not None or labels.ndim == 1:
            logits = jnp.where((w != 0)[:, None], logits, jnp.zeros_like(logits))
        return reduced(w * each(logits, rows), w, axis_name, reduction)

    return on_any_mesh(mean, logits, labels, weights)
