"""The weighted composition of terms that is added to cross-entropy in training."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.accumulation import RunningSums, linearize_at
from gini_jax.losses.balance import GradientNorms
from gini_jax.losses.term import FeatureTerm, Outputs, QueueTerm, SumTerm, TermContext
from gini_jax.losses.terms import spec_of, weight_of


class ObjectiveState(NamedTuple):
    """What the terms carry from step to step.

    Attributes:
        terms: by name, the state of each term that is not a function of sums; and, as `params`,
            the parameters that terms learn, by name, if there are any.
        running: running sums for the terms that are functions of sums; None if switched off.
        norms: gradient norms that the weights follow; None if the weights are fixed.
    """

    terms: dict[str, Any]
    running: RunningSums | None
    norms: GradientNorms | None = None

    @property
    def params(self) -> dict[str, Any] | None:
        """By name, the parameters that terms learn; None if there are none."""
        return self.terms.get("params")

    def with_params(self, params: dict[str, Any]) -> "ObjectiveState":
        """The state with other values of the parameters."""
        return self._replace(terms={**self.terms, "params": params})


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
        terms: by key, a weight, or a section with `weight`, `name` if it is not the key, and the
            term's own settings. A weight is a number, or a number for each layer. A term of weight
            0 is left out. Weights of layers are part of a term's value; its own weight is then 1.
        running_decay: decay of the running sums that the sum terms see; 0: the batch's own sums.
        hold_gradient_ratios: the weights are ratios to cross-entropy's gradient; see
            `GradientNorms`.
        context: what terms may need to know of the run.

    Examples:
        >>> objective = Objective({"gini": 0.5, "kl": 0.5})
        >>> outputs = Outputs({"pooled": jnp.ones((2, 8))}, jnp.zeros((2, 2)), jnp.eye(2))
        >>> values = objective.of_sums(objective.sums(outputs), objective.init(outputs), 1.0)
        >>> float(values.added), float(values.terms["gini"])
        (0.25, 0.5)
    """

    def __init__(
        self,
        terms: Mapping[str, Any],
        running_decay: float = 0.0,
        hold_gradient_ratios: bool = False,
        context: TermContext = TermContext(),  # noqa: B008
    ):
        active: dict[str, float] = {}
        created: dict[str, Any] = {}
        for key, section in terms.items():
            if not (weight := weight_of(section)):
                continue
            own = dict(section.items()) if hasattr(section, "items") else {}
            settings = {k: v for k, v in own.items() if k not in ("weight", "name")}
            created[key] = spec_of(key, section).create(context, **settings)
            by_layer = isinstance(weight, Mapping)
            if by_layer:
                created[key] = created[key]._replace(layers=weight)
            active[key] = 1.0 if by_layer else weight
        self.weights, self.running_decay = active, running_decay
        self.hold_gradient_ratios = hold_gradient_ratios
        self.sum_terms = {n: term for n, term in created.items() if isinstance(term, SumTerm)}
        self.other_terms: dict[str, Any] = {
            name: term for name, term in created.items() if name not in self.sum_terms
        }

    def without_others(self) -> "Objective":
        """The terms that are functions of sums, with their weights."""
        found = copy.copy(self)
        found.weights = {name: self.weights[name] for name in self.sum_terms}
        found.other_terms = {}
        return found

    def init(self, outputs: Outputs, key: jax.Array | None = None) -> ObjectiveState:
        """The state before the first step.

        Args:
            outputs: shapes of a batch's outputs.
            key: of the parameters that terms learn; not needed where there are none.
        """
        running = None
        if self.running_decay and self.sum_terms:
            arrays = outputs._replace(axis_name=None)
            running = RunningSums.zeros_like(
                jax.eval_shape(lambda tree: self.sums(Outputs(*tree)), tuple(arrays))
            )
        held = self.hold_gradient_ratios and self.weights
        norms = GradientNorms.zeros(self.weights) if held else None
        states = {n: term.init(outputs) for n, term in self.other_terms.items()}
        state = ObjectiveState(states, running, norms)
        params = self._params(outputs, key)
        return state.with_params(params) if params else state

    def _params(self, outputs: Outputs, key: jax.Array | None) -> dict[str, Any]:
        """The initial parameters of the terms that learn some."""
        found = {}
        for i, (name, term) in enumerate(sorted(self.other_terms.items())):
            if hasattr(term, "params") and key is not None:
                found[name] = term.params(jax.random.fold_in(key, i), outputs)
        return {name: params for name, params in found.items() if params}

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
        values, states = {}, dict(state.terms)
        for name, term in self.other_terms.items():
            values[name], states[name] = term(_with_params(outputs, state, name), state.terms[name])
        added = self._weighted(values, state, scale)
        return Values(added, values, state._replace(terms=states))

    def _weighted(
        self, values: Mapping[str, jax.Array], state: ObjectiveState, scale: Any
    ) -> jax.Array:
        weights = self.weights_at(state)
        parts = [weights[name] * scale * value for name, value in values.items()]
        return sum(parts, start=jnp.zeros(()))


class CachedGradients(NamedTuple):
    """The terms that are no functions of sums, taken once for a batch that is read in parts.

    Attributes:
        values: of the global batch; `added` is theirs alone.
        of_term: by term, its gradients at the features and logits of this device's part.
        of_params: the gradient of what is added with respect to the terms' own parameters.
    """

    values: Values
    of_term: dict[str, "TermGradients"]
    of_params: Any


def cached_gradients(
    objective: Objective, outputs: Outputs, state: ObjectiveState, scale: Any
) -> CachedGradients:
    """The terms over the outputs of a whole batch, and their gradients there.

    Pulled back through the network part by part, these give the gradient of the batch: see
    `cached_value_and_grad`.

    Args:
        objective: the terms.
        outputs: of this device's part of the batch, as constants.
        state: the terms' state.
        scale: what all weights are multiplied by.
    """
    of_term = {
        name: gradients
        for name, gradients in term_gradients(objective, outputs, state, None).items()
        if name not in objective.sum_terms
    }

    def added(params: Any) -> tuple[jax.Array, Values]:
        there = state if params is None else state.with_params(params)
        values = objective.of_outputs(outputs, there, scale)
        return values.added, values

    if state.params is None:
        return CachedGradients(added(None)[1], of_term, None)
    of_params, values = jax.grad(added, has_aux=True)(state.params)
    return CachedGradients(values, of_term, of_params)


class TermGradients(NamedTuple):
    """Gradients of a term, with weight 1, with respect to a network's outputs on this device.

    Attributes:
        features: by layer.
        logits: None for a term that cannot read them.
    """

    features: dict[str, Any]
    logits: Any = None


def term_gradients(
    objective: Objective, outputs: Outputs, state: ObjectiveState, total: Any
) -> dict[str, TermGradients]:
    """By term, its gradients with respect to the outputs, whether or not it is switched on yet.

    Args:
        objective: the terms.
        outputs: as in `shared_value`.
        state: the terms' state.
        total: the global batch's sums, as from `shared_value`; None leaves the sum terms out.
    """
    axis_name = outputs.axis_name
    devices = 1 if axis_name is None else lax.axis_size(axis_name)

    def of_sums(name: str, sums: Any) -> jax.Array:
        if state.running is not None:
            sums, _ = state.running.update(sums, objective.running_decay)
        return objective.sum_terms[name].of_sums(sums) * devices

    def of_other(name: str, features: Mapping[str, Any], logits: Any) -> jax.Array:
        there = outputs._replace(features=features, logits=logits)
        term, own_state = objective.other_terms[name], state.terms[name]
        return term(_with_params(there, state, name), own_state)[0]

    found, features = {}, dict(outputs.features)
    _, pull = jax.vjp(lambda x: objective.sums(outputs._replace(features=x)), features)
    for name in objective.weights:
        if name in objective.sum_terms and total is None:
            continue
        if name in objective.sum_terms:
            found[name] = TermGradients(*pull(jax.grad(partial(of_sums, name))(total)))
        else:
            both = jax.grad(partial(of_other, name), (0, 1))(features, outputs.logits)
            reads_logits = not isinstance(objective.other_terms[name], FeatureTerm | QueueTerm)
            found[name] = TermGradients(both[0], both[1] if reads_logits else None)
    return found


def _with_params(outputs: Outputs, state: ObjectiveState, name: str) -> Outputs:
    """The outputs as a term sees them, with the parameters that it learns."""
    return outputs._replace(params=(state.params or {}).get(name))


def gradient_squares(
    of_ce: dict[str, jax.Array],
    of_term: Mapping[str, TermGradients],
    at_layers: Callable[[float, jax.Array], dict[str, jax.Array]],
) -> dict[str, jax.Array]:
    """Squared norms, over all layers, of the gradients of cross-entropy and of each term.

    Args:
        of_ce: cross-entropy's gradient by layer.
        of_term: by term, its gradients with respect to the features and the logits.
        at_layers: from cotangents of cross-entropy and of the logits to the gradient by layer.
    """
    squares = {"ce": squared_norm(of_ce)}
    for name, own in of_term.items():
        at = own.features
        if own.logits is not None:
            at = jax.tree.map(jnp.add, at, at_layers(0.0, own.logits))
        squares[name] = squared_norm(at)
    return squares


def squared_norm(tree: Any) -> jax.Array:
    """Sum of the squares of all numbers of a tree, in float32."""
    squares = [jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(tree)]
    return sum(squares, start=jnp.zeros(()))


def shared_value(
    objective: Objective,
    outputs: Outputs,
    state: ObjectiveState,
    scale: Any,
    total: Any = None,
    cached: CachedGradients | None = None,
) -> tuple[jax.Array, Values, Any]:
    """All terms of the global batch, and a scalar whose gradient this device contributes.

    The sum terms are differentiated through this device's own sums alone, so that they need no
    collective in the backward pass (see `linearize_at`).

    Args:
        objective: the terms.
        outputs: of this device's part of the batch, or of one micro-batch of it.
        state: the terms' state.
        scale: what all weights are multiplied by.
        total: the global batch's sums; None: those of the outputs of all devices.
        cached: for a part of the batch, the other terms of the whole, with their gradients at this
            part; None: they are taken of these outputs.

    Returns:
        The scalar to differentiate, whose gradients are to be averaged over the devices and added
        over the micro-batches; the values; and the global batch's sums, as constants.
    """
    axis_name = outputs.axis_name
    local = objective.sums(outputs)
    if total is None:
        total = lax.stop_gradient(local)
        total = total if axis_name is None else lax.psum(total, axis_name)

    def value_of(sums: Any) -> tuple[jax.Array, Values]:
        values = objective.of_sums(sums, state, scale)
        return values.added, values

    (_, of_sums), linearized = linearize_at(value_of, total, has_aux=True)
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    if cached is None:
        others = objective.of_outputs(outputs, state, scale)
        of_others = others.added
    else:
        others, of_others = cached.values, _linear(objective, outputs, state, scale, cached)
    values = Values(
        of_sums.added + others.added,
        of_sums.terms | others.terms,
        of_sums.state._replace(terms=others.state.terms),
    )
    return linearized(local) * devices + of_others, values, total


def _linear(
    objective: Objective,
    outputs: Outputs,
    state: ObjectiveState,
    scale: Any,
    cached: CachedGradients,
) -> jax.Array:
    """The products of a part's outputs with the weighted gradients of the terms there."""
    weights, total = objective.weights_at(state), jnp.zeros(())
    for name, (features, logits) in cached.of_term.items():
        pairs = [(features[layer], x) for layer, x in outputs.features.items()]
        pairs += [] if logits is None else [(logits, outputs.logits)]
        products = [(ct.astype(x.dtype) * x).astype(jnp.float32).sum() for ct, x in pairs]
        total = total + weights[name] * scale * sum(products, start=jnp.zeros(()))
    return total
