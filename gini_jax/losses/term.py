"""What a term is: what it sees, the two protocols, and the kinds that the package has."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from gini_jax.losses.class_sums import local_sums, spatial_mean, sum_type
from gini_jax.losses.covariance import local_second_moments
from gini_jax.losses.directions import local_direction_products, local_direction_sums
from gini_jax.losses.moments import local_moments
from gini_jax.losses.queue import Queue
from gini_jax.losses.rules import AxisName


class Outputs(NamedTuple):
    """What a network gave for a batch, or for this device's part of it.

    Attributes:
        features: by layer, `[n, ..., C]`: the layers of `config.loss.layers`.
        logits: `[n, K]`.
        labels: `[n, K]` rows, which mixup and label smoothing may have made soft.
        where: `[n]` mask or example weights; None: all count alike.
        axis_name: the mapped axis that the batch is divided over, if there is one.
        params: what the term learns together with the network; see `Term.params`.
    """

    features: Mapping[str, Any]
    logits: Any
    labels: Any
    where: Any = None
    axis_name: AxisName | None = None
    params: Any = None


class TermContext(NamedTuple):
    """What a term may need to know of the run.

    Attributes:
        class_shares: `[K]`, of the training set; None: not known.
        scale: what a cosine head multiplies the cosines by.
        superclasses: the superclass of each of the `K` classes; empty if there are none.
        steps_per_epoch: of training.
    """

    class_shares: jax.Array | None = None
    scale: float = 1.0
    superclasses: tuple[int, ...] = ()
    steps_per_epoch: int = 1


class Term(Protocol):
    """A term of the loss.

    The value is that of the global batch: where `outputs.axis_name` is set, the term gathers what
    it needs from the other devices (`lax.psum`, `lax.all_gather`). A term that learns parameters
    also has `params(key, outputs)`, which gives their initial values, and finds them in
    `outputs.params`.
    """

    def init(self, outputs: Outputs) -> Any:
        """The state before the first step, such as class centres; `()` for none.

        Args:
            outputs: shapes and types of a batch's outputs (`jax.ShapeDtypeStruct`).
        """

    def __call__(self, outputs: Outputs, state: Any) -> tuple[jax.Array, Any]:
        """The term's unweighted value, scalar, and its next state."""


@runtime_checkable
class SumTerm(Protocol):
    """A term that is a function of sums over the examples.

    It is exact under `config.grad_accumulation`, shares one all-reduce with all other sum terms,
    and can take sums that are blended with their history.
    """

    def sums(self, outputs: Outputs) -> dict[str, Any]:
        """By name, sums over this device's examples; terms that name the same sums share them."""

    def of_sums(self, sums: Mapping[str, Any]) -> jax.Array:
        """The unweighted value, scalar, from the sums of the global batch."""


def mean_over(
    values: Mapping[str, jax.Array], weights: Mapping[str, float | jax.Array] | None = None
) -> jax.Array:
    """The mean over the layers of a term's values, each times the layer's weight.

    Args:
        values: by layer.
        weights: by layer; where some are given, the others are 0. Without any, all are 1.

    Examples:
        >>> float(mean_over({"stage3": jnp.ones(()), "stage4": jnp.ones(())}, {"stage4": 0.5}))
        0.25
    """
    if weights:
        values = {
            layer: jnp.asarray(weights.get(layer, 0.0), value.dtype) * value
            for layer, value in values.items()
        }
    return jnp.stack(list(values.values())).mean()


def _scalar(value: Any) -> jax.Array:
    """A loss's value, which must be one number."""
    if not hasattr(value, "shape") or value.shape != ():
        shown = f"shape {list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise TypeError(f"a loss returned {shown}; it must return a scalar array, such as a mean")
    return value


# Functions from features, labels and `where` to this device's sums, by the name of the sums.
SUMS: dict[str, Callable[..., Any]] = {
    "class_sums": local_sums,
    "signed_class_sums": partial(local_sums, signed=True),
    "feature_moments": local_moments,
    "second_moments": local_second_moments,
    "direction_sums": local_direction_sums,
    "direction_products": local_direction_products,
}


class ClassSumTerm(NamedTuple):
    """A term that is a loss of the class sums of each layer, averaged over the layers.

    Attributes:
        loss: from sums, such as `ClassSums`, to a scalar.
        kind: which sums, one of `SUMS`.
        layers: a weight for each layer; empty: 1.
    """

    loss: Callable[[Any], jax.Array]
    kind: str = "class_sums"
    layers: Mapping[str, float] = {}

    def sums(self, outputs: Outputs) -> dict[str, Any]:
        """The sums by layer, under the name of their kind."""
        of_layer = partial(SUMS[self.kind], labels=outputs.labels, where=outputs.where)
        return {self.kind: {layer: of_layer(x) for layer, x in outputs.features.items()}}

    def by_layer(self, sums: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The loss of each layer's sums."""
        return {layer: _scalar(self.loss(own)) for layer, own in sums[self.kind].items()}

    def of_sums(self, sums: Mapping[str, Any]) -> jax.Array:
        """The mean over the layers."""
        return mean_over(self.by_layer(sums), self.layers)


class FeatureTerm(NamedTuple):
    """A term that is a loss of features and labels, averaged over the layers.

    Attributes:
        loss: from features, labels, the parameters if there are any, `where` and `axis_name` to a
            scalar.
        create: a function from a random key and the numbers of features and classes to the
            parameters that the loss learns for a layer; None: it learns none.
        layers: a weight for each layer; empty: 1.
    """

    loss: Callable[..., jax.Array]
    create: Callable[[jax.Array, int, int], Any] | None = None
    layers: Mapping[str, float] = {}

    def params(self, key: jax.Array, outputs: Outputs) -> dict[str, Any]:
        """The initial parameters, by layer."""
        if self.create is None:
            return {}
        sizes = {layer: x.shape[-1] for layer, x in outputs.features.items()}
        keys = jax.random.split(key, len(sizes))
        num_classes = outputs.logits.shape[-1]
        return {
            layer: self.create(own, sizes[layer], num_classes)
            for own, layer in zip(keys, sorted(sizes), strict=True)
        }

    def init(self, outputs: Outputs) -> tuple[()]:
        """No state."""
        return ()

    def __call__(self, outputs: Outputs, state: Any) -> tuple[jax.Array, Any]:
        """The mean over the layers."""
        options = {"where": outputs.where, "axis_name": outputs.axis_name}
        by_layer = {}
        for layer, features in outputs.features.items():
            learned = () if self.create is None else (outputs.params[layer],)
            by_layer[layer] = _scalar(self.loss(features, outputs.labels, *learned, **options))
        return mean_over(by_layer, self.layers), state


class QueueTerm(NamedTuple):
    """A loss over pairs whose anchors are also compared with a queue of earlier examples.

    Attributes:
        loss: over pairs; see `over_pairs`.
        size: of the queue of each layer.
        first_step: from which step on the queue counts; it fills from the first one on.
        views: whether the rows are two views of each image, first all of one, then all of the
            other. Their labels mean nothing.
        create: as in `FeatureTerm`.
        layers: a weight for each layer; empty: 1.
    """

    loss: Callable[..., jax.Array]
    size: int
    first_step: int = 0
    views: bool = False
    create: Callable[[jax.Array, int, int], Any] | None = None
    layers: Mapping[str, float] = {}

    def params(self, key: jax.Array, outputs: Outputs) -> dict[str, Any]:
        """The initial parameters, by layer."""
        return FeatureTerm(self.loss, self.create).params(key, outputs)

    def init(self, outputs: Outputs) -> dict[str, Any]:
        """Empty queues, by layer, and the number of steps done."""
        queues = {
            layer: Queue.create(self.size, x.shape[-1], dtype=sum_type(x.dtype))
            for layer, x in outputs.features.items()
        }
        return {"queues": queues, "steps": jnp.zeros((), jnp.int32)}

    def __call__(self, outputs: Outputs, state: Any) -> tuple[jax.Array, Any]:
        """The mean over the layers, and the queues with the batch in them."""
        labels = outputs.labels
        classes = jnp.where((labels > 0).any(axis=1), labels.argmax(axis=1), -1)
        classes = jnp.zeros_like(classes) if self.views else classes
        batch = {"where": outputs.where, "axis_name": outputs.axis_name}
        by_layer, queues = {}, {}
        for layer, features in outputs.features.items():
            older, of_older, there = state["queues"][layer].examples()
            references = older, of_older, there & (state["steps"] >= self.first_step)
            learned = () if self.create is None else (outputs.params[layer],)
            value = self.loss(features, classes, *learned, references=references, **batch)
            by_layer[layer] = _scalar(value)
            x = spatial_mean(features, outputs.where, features.ndim - 1, signed=True)
            given = (x, outputs.where)
            if self.views:  # those of an image side by side: in the same order on any devices
                given = jax.tree.map(_side_by_side, given)
            queues[layer] = state["queues"][layer].push(
                given[0], classes, where=given[1], axis_name=outputs.axis_name
            )
        following = {"queues": queues, "steps": state["steps"] + 1}
        return mean_over(by_layer, self.layers), following


def _side_by_side(x: jax.Array) -> jax.Array:
    """The rows `0, n, 1, n + 1, ...` of `[2 n, ...]`."""
    return x.reshape(2, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)


class LogitTerm(NamedTuple):
    """A term that is a loss of logits and labels.

    Attributes:
        loss: from logits, labels, `where` and `axis_name` to a scalar.
    """

    loss: Callable[..., jax.Array]

    def init(self, outputs: Outputs) -> tuple[()]:
        """No state."""
        return ()

    def __call__(self, outputs: Outputs, state: Any) -> tuple[jax.Array, Any]:
        """The loss of the logits."""
        options = {"where": outputs.where, "axis_name": outputs.axis_name}
        return _scalar(self.loss(outputs.logits, outputs.labels, **options)), state
