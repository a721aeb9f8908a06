"""Terms added to cross-entropy in training: what a term is, the table, and their composition.

A new term is one new file and one line in `TERMS`.
"""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.accumulation import RunningSums, linearize_at
from gini_jax.losses.balance import GradientNorms
from gini_jax.losses.center import center_loss
from gini_jax.losses.class_sums import AxisName, local_sums
from gini_jax.losses.discriminability import Target, entropy_loss, gini_loss, kl_loss
from gini_jax.losses.fisher import fisher_loss
from gini_jax.losses.information import mutual_information_loss
from gini_jax.losses.island import island_loss
from gini_jax.losses.moments import local_moments
from gini_jax.losses.multi_similarity import multi_similarity_loss
from gini_jax.losses.renyi import renyi_loss
from gini_jax.losses.supcon import supcon_loss
from gini_jax.losses.triplet import triplet_loss


class Outputs(NamedTuple):
    """What a network gave for a batch, or for this device's share of it.

    Attributes:
        features: by layer, `[n, ..., C]`: the layers of `config.loss.layers`.
        logits: `[n, K]`.
        labels: `[n, K]` rows, which mixup and label smoothing may have made soft.
        where: `[n]` mask or example weights; None: all count alike.
        axis_name: the mapped axis that the batch is divided over, if there is one.
    """

    features: Mapping[str, Any]
    logits: Any
    labels: Any
    where: Any = None
    axis_name: AxisName | None = None


class Term(Protocol):
    """A term of the loss.

    The value is that of the global batch: where `outputs.axis_name` is set, the term gathers what
    it needs from the other devices (`lax.psum`, `lax.all_gather`).
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

    It is exact under `config.grad_accumulation`, costs one all-reduce together with all others of
    its kind, and can take sums that are blended with their history.
    """

    def sums(self, outputs: Outputs) -> dict[str, Any]:
        """By name, sums over this device's examples; terms that name the same sums share them."""

    def of_sums(self, sums: Mapping[str, Any]) -> jax.Array:
        """The unweighted value, scalar, from the sums of the global batch."""


# From features, labels and `where` to this device's own sums, by the name that terms share them by.
SUMS: dict[str, Callable[..., Any]] = {
    "class_sums": local_sums,
    "signed_class_sums": partial(local_sums, signed=True),
    "feature_moments": local_moments,
}


class ClassSumTerm(NamedTuple):
    """A term that is a loss of the class sums of each layer, averaged over the layers.

    Attributes:
        loss: from sums, such as `ClassSums`, to a scalar.
        kind: which sums, one of `SUMS`.
    """

    loss: Callable[[Any], jax.Array]
    kind: str = "class_sums"

    def sums(self, outputs: Outputs) -> dict[str, Any]:
        """The sums by layer, under the name of their kind."""
        of_layer = partial(SUMS[self.kind], labels=outputs.labels, where=outputs.where)
        return {self.kind: {layer: of_layer(x) for layer, x in outputs.features.items()}}

    def of_sums(self, sums: Mapping[str, Any]) -> jax.Array:
        """The mean over the layers."""
        return jnp.stack([self.loss(layer) for layer in sums[self.kind].values()]).mean()


class PairTerm(NamedTuple):
    """A term that is a loss over the pairs of the global batch, averaged over the layers.

    Attributes:
        loss: from features, labels, `where` and `axis_name` to a scalar.
    """

    loss: Callable[..., jax.Array]

    def init(self, outputs: Outputs) -> tuple[()]:
        """No state."""
        return ()

    def __call__(self, outputs: Outputs, state: Any) -> tuple[jax.Array, Any]:
        """The mean over the layers."""
        options = {"where": outputs.where, "axis_name": outputs.axis_name}
        by_layer = [
            self.loss(features, outputs.labels, **options) for features in outputs.features.values()
        ]
        return jnp.stack(by_layer).mean(), state


def imported(place: str) -> Callable[[], Any]:
    """A term in a file of its own, `module:Class`, which is imported when it is first used."""

    def create() -> Any:
        module, _, name = place.partition(":")
        return getattr(importlib.import_module(module), name)()

    return create


TERMS: dict[str, Callable[[], Term | SumTerm]] = {
    "gini": lambda: ClassSumTerm(gini_loss),
    "kl": lambda: ClassSumTerm(kl_loss),
    "entropy": lambda: ClassSumTerm(entropy_loss, "signed_class_sums"),
    "renyi": lambda: ClassSumTerm(renyi_loss),
    "mutual_information": lambda: ClassSumTerm(mutual_information_loss),
    "center": lambda: ClassSumTerm(center_loss, "feature_moments"),
    "fisher": lambda: ClassSumTerm(fisher_loss, "feature_moments"),
    "island": lambda: ClassSumTerm(island_loss, "feature_moments"),
    "supcon": lambda: PairTerm(supcon_loss),
    "triplet": lambda: PairTerm(triplet_loss),
    "multi_similarity": lambda: PairTerm(multi_similarity_loss),
}

# Objectives by name, as they follow the colon in --config=FILE:OBJECTIVE.
PRESETS: dict[str, dict[str, float]] = {
    "ce": {},
    "gini": {"gini": 0.5},
    "kl": {"kl": 0.5},
    "gini_kl": {"gini": 0.5, "kl": 0.5},
    "entropy_kl": {"entropy": 0.5, "kl": 0.5},
    "renyi": {"renyi": 0.1},
    "renyi_kl": {"renyi": 0.1, "kl": 0.5},
    "mutual_information": {"mutual_information": 0.1},
    "center": {"center": 0.01},
    "fisher": {"fisher": 0.1},
    "island": {"center": 0.01, "island": 0.1},
    "supcon": {"supcon": 0.5},
    "triplet": {"triplet": 0.5},
    "multi_similarity": {"multi_similarity": 0.5},
}


def objective_name(terms: Mapping[str, float]) -> str:
    """The name of a composition: that of the preset with these terms, or their names joined.

    Examples:
        >>> objective_name({"kl": 1.0, "gini": 0.1}), objective_name({}), objective_name({"kl": 0})
        ('gini_kl', 'ce', 'ce')
    """
    active = {name for name, weight in terms.items() if weight}
    for preset, weights in PRESETS.items():
        if set(weights) == active:
            return preset
    return "_".join(name for name in TERMS if name in active)


class ObjectiveState(NamedTuple):
    """What the terms carry from step to step.

    Attributes:
        terms: by name, the state of each term that is not a function of sums.
        running: running sums for the terms that are; None if they are switched off.
        norms: gradient norms that the weights follow; None if the weights are fixed.
    """

    terms: dict[str, Any]
    running: RunningSums | None
    norms: GradientNorms | None = None


class Values(NamedTuple):
    """The terms' values for a batch.

    Attributes:
        added: the weighted sum that is added to cross-entropy, scalar.
        terms: by name, each term's unweighted value.
        state: the terms' next state.
    """

    added: jax.Array
    terms: dict[str, jax.Array]
    state: ObjectiveState


class Objective:
    """A weighted composition of terms.

    Args:
        weights: by name of the term, from `TERMS`; a term of weight 0 is left out.
        running_decay: decay of the running sums that the sum terms see; 0: the batch's own sums.
        hold_shares: the weights are shares of cross-entropy's gradient; see `GradientNorms`.
        kl_target: what the term `kl` compares with; see `kl_loss`.

    Examples:
        >>> objective = Objective({"gini": 0.5, "kl": 0.5})
        >>> outputs = Outputs({"pooled": jnp.ones((2, 8))}, jnp.zeros((2, 2)), jnp.eye(2))
        >>> values = objective.of_sums(objective.sums(outputs), objective.init(outputs), 1.0)
        >>> float(values.added), float(values.terms["gini"])
        (0.25, 0.5)
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        running_decay: float = 0.0,
        hold_shares: bool = False,
        kl_target: Target = None,
    ):
        active = {name: weight for name, weight in weights.items() if weight}
        terms = {name: TERMS[name]() for name in active}
        if "kl" in terms:
            terms["kl"] = ClassSumTerm(partial(kl_loss, target=kl_target))
        self.weights, self.running_decay, self.hold_shares = active, running_decay, hold_shares
        self.sum_terms = {n: term for n, term in terms.items() if isinstance(term, SumTerm)}
        self.other_terms: dict[str, Any] = {
            name: term for name, term in terms.items() if name not in self.sum_terms
        }

    def init(self, outputs: Outputs) -> ObjectiveState:
        """The state before the first step, from the shapes of a batch's outputs."""
        running = None
        if self.running_decay and self.sum_terms:
            arrays = outputs._replace(axis_name=None)
            running = RunningSums.zeros_like(
                jax.eval_shape(lambda tree: self.sums(Outputs(*tree)), tuple(arrays))
            )
        held = self.hold_shares and self.weights
        norms = GradientNorms.zeros(self.weights) if held else None
        return ObjectiveState(
            {n: term.init(outputs) for n, term in self.other_terms.items()}, running, norms
        )

    def weights_at(self, state: ObjectiveState) -> dict[str, Any]:
        """By term, what its value is multiplied by in the next step."""
        if state.norms is None:
            return dict(self.weights)
        factors = state.norms.factors()
        return {name: weight * factors[name] for name, weight in self.weights.items()}

    def sums(self, outputs: Outputs) -> dict[str, Any]:
        """By name, the sums of this device's examples that the sum terms are functions of."""
        merged: dict[str, Any] = {}
        for term in self.sum_terms.values():
            merged |= term.sums(outputs)
        return merged

    def of_sums(self, sums: Mapping[str, Any], state: ObjectiveState, scale: Any) -> Values:
        """The sum terms as functions of the global batch's sums.

        Args:
            sums: as from `sums`, added over devices and micro-batches.
            state: the terms' state.
            scale: what all weights are multiplied by, such as 0 before the start epoch.
        """
        if state.running is not None:
            sums, running = state.running.update(sums, self.running_decay)
            state = state._replace(running=running)
        values = {name: term.of_sums(sums) for name, term in self.sum_terms.items()}
        return Values(self._weighted(values, state, scale), values, state)

    def of_outputs(self, outputs: Outputs, state: ObjectiveState, scale: Any) -> Values:
        """The other terms, of the global batch; arguments as in `of_sums`."""
        values, states = {}, {}
        for name, term in self.other_terms.items():
            values[name], states[name] = term(outputs, state.terms[name])
        added = self._weighted(values, state, scale)
        return Values(added, values, state._replace(terms=states))

    def _weighted(
        self, values: Mapping[str, jax.Array], state: ObjectiveState, scale: Any
    ) -> jax.Array:
        weights = self.weights_at(state)
        parts = [weights[name] * scale * value for name, value in values.items()]
        return sum(parts, start=jnp.zeros(()))


def global_sums(objective: Objective, outputs: Outputs) -> dict[str, Any]:
    """The global batch's sums, as constants: from this device's outputs, over all devices."""
    sums = lax.stop_gradient(objective.sums(outputs))
    return sums if outputs.axis_name is None else lax.psum(sums, outputs.axis_name)


def gradient_squares(
    objective: Objective, outputs: Outputs, state: ObjectiveState, total: Any
) -> dict[str, jax.Array]:
    """How strongly each term pulls at the features, whether or not it is switched on yet.

    Args:
        objective: the terms.
        outputs: as in `shared_value`.
        state: the terms' state.
        total: as in `shared_value`.

    Returns:
        By term, the squared norm of its gradient, with weight 1, with respect to this device's
        features, over all layers together.
    """
    axis_name = outputs.axis_name
    devices = 1 if axis_name is None else lax.axis_size(axis_name)

    def value(name: str, features: Mapping[str, Any]) -> jax.Array:
        there = outputs._replace(features=features)
        if name not in objective.sum_terms:
            return objective.other_terms[name](there, state.terms[name])[0]
        term = objective.sum_terms[name]

        def of_sums(sums: Any) -> jax.Array:
            if state.running is not None:
                sums, _ = state.running.update(sums, objective.running_decay)
            return term.of_sums(sums)

        return linearize_at(of_sums, total)[1](objective.sums(there)) * devices

    gradients = {
        name: jax.grad(partial(value, name))(dict(outputs.features)) for name in objective.weights
    }
    return {name: squared_norm(gradient) for name, gradient in gradients.items()}


def squared_norm(tree: Any) -> jax.Array:
    """Sum of the squares of all numbers of a tree, in float32."""
    squares = [jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(tree)]
    return sum(squares, start=jnp.zeros(()))


def shared_value(
    objective: Objective, outputs: Outputs, state: ObjectiveState, scale: Any, total: Any
) -> tuple[jax.Array, Values]:
    """All terms of the global batch, and a scalar whose gradient this device contributes.

    The sum terms are differentiated through this device's own sums alone, so that they need no
    collective in the backward pass (see `linearize_at`).

    Args:
        objective: the terms.
        outputs: of this device's share of the batch, or of one micro-batch of it.
        state: the terms' state.
        scale: what all weights are multiplied by.
        total: the global batch's sums; see `global_sums`.

    Returns:
        The scalar to differentiate, whose gradients are to be averaged over the devices and added
        over the micro-batches; and the values.
    """
    axis_name = outputs.axis_name

    def value_of(sums: Any) -> tuple[jax.Array, Values]:
        values = objective.of_sums(sums, state, scale)
        return values.added, values

    (_, of_sums), linearized = linearize_at(value_of, total, has_aux=True)
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    others = objective.of_outputs(outputs, state, scale)
    values = Values(
        of_sums.added + others.added,
        of_sums.terms | others.terms,
        of_sums.state._replace(terms=others.state.terms),
    )
    return linearized(objective.sums(outputs)) * devices + others.added, values
