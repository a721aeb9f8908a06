"""Metrics of a training step besides the loss: per-example values of the network's outputs.

A new metric is one function and one line in `METRICS`.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from gini_jax.config.registry import Registry
from gini_jax.losses.term import Outputs

PerExample: TypeAlias = Float[Array, " n"] | Bool[Array, " n"]
Metric: TypeAlias = Callable[[Outputs], PerExample]


def accuracy(outputs: Outputs) -> PerExample:
    """Whether the largest logit is that of the label.

    Examples:
        >>> logits = jnp.array([[2.0, 1.0], [3.0, 1.0]])
        >>> accuracy(Outputs({}, logits, jnp.eye(2))).tolist()
        [True, False]
    """
    return outputs.logits.argmax(axis=-1) == outputs.labels.argmax(axis=-1)


def top5(outputs: Outputs) -> PerExample:
    """Whether fewer than five logits are larger than that of the label.

    Examples:
        >>> logits, labels = jnp.arange(7.0)[None], jnp.eye(7)
        >>> [bool(top5(Outputs({}, logits, labels[k : k + 1]))[0]) for k in (1, 2, 6)]
        [False, True, True]
    """
    own = jnp.take_along_axis(outputs.logits, outputs.labels.argmax(axis=-1)[:, None], axis=-1)
    return (outputs.logits > own).sum(axis=-1) < 5


# A plugin is a function from `Outputs` to `[n]` values, which are averaged over the labelled
# examples of the global batch, and over the steps of an epoch.
METRICS = Registry("step_metrics", {"accuracy": accuracy, "top5": top5})


def metrics_of(config: ConfigDict) -> dict[str, Metric]:
    """The metrics that `config.step_metrics` names, and accuracy.

    Examples:
        >>> list(metrics_of(ConfigDict({"step_metrics": ("top5",)})))
        ['accuracy', 'top5']
    """
    return {name: METRICS.find(name) for name in ("accuracy", *config.step_metrics)}
