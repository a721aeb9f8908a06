"""Pseudo-labels: the network labels unlabelled images itself, where it is confident."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from gini_jax.losses.term import Outputs


def is_labelled(rows: Float[Array, "n K"]) -> Bool[Array, " n"]:
    """Whether each image has a label; an unlabelled image has a row of zeros."""
    return rows.sum(axis=1) > 0


def with_own_labels(outputs: Outputs, confidence: float) -> Outputs:
    """Replaces missing labels with the network's probabilities, without a gradient.

    An image whose largest probability is below `confidence` gets weight 0. So it enters neither
    cross-entropy nor the terms.

    Args:
        outputs: the network's outputs; rows of zeros in `labels` are missing labels.
        confidence: in `[0, 1]`.

    Returns:
        The outputs, with label rows that sum to 1, and zeros and ones in `where`.

    References:
        Lee, "Pseudo-label", 2013, here with soft labels.

    Examples:
        >>> logits, rows = jnp.array([[9.0, 0.0], [0.1, 0.0], [0.0, 0.0]]), jnp.eye(2)[1]
        >>> outputs = Outputs({}, logits, jnp.stack([jnp.zeros(2), jnp.zeros(2), rows]))
        >>> own = with_own_labels(outputs, 0.95)
        >>> own.where.tolist(), own.labels[2].tolist()
        ([1.0, 0.0, 1.0], [0.0, 1.0])
    """
    labelled = is_labelled(outputs.labels)
    probabilities = lax.stop_gradient(jax.nn.softmax(outputs.logits.astype(jnp.float32)))
    sure = probabilities.max(axis=1) >= confidence
    return outputs._replace(
        labels=jnp.where(labelled[:, None], outputs.labels, probabilities),
        where=(labelled | sure).astype(jnp.float32),
    )


def mean_where(
    values: Float[Array, " n"] | Bool[Array, " n"],
    where: Float[Array, " n"],
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """A device's contribution to the weighted mean over the global batch.

    Averaged over the devices, it is the mean over all examples of weight 1; 0 if there are none.

    Examples:
        >>> float(mean_where(jnp.array([1.0, 3.0, 9.0]), jnp.array([1.0, 1.0, 0.0])))
        2.0
    """
    total, devices = where.sum(), 1
    if axis_name is not None:
        total, devices = lax.psum(total, axis_name), lax.axis_size(axis_name)
    return (where * values).sum() * devices / jnp.maximum(total, 1.0)
