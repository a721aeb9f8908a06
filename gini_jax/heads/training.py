"""Trains small heads on feature vectors: hidden layers with a ReLU, and a linear or cosine layer.

A run is a pure function of arrays, so that `vmap` trains many at once, and programs depend on
shapes alone.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax

from gini_jax.losses.objective import (
    Objective,
    gradient_squares,
    shared_value,
    term_gradients,
)
from gini_jax.losses.pairs import cosine
from gini_jax.losses.term import Outputs, TermContext
from gini_jax.losses.terms import needs_of

Params: TypeAlias = dict[str, Any]
LAYER = "hidden"  # the layer that the terms act on: the last one before the classes
SCALE = 16.0  # of the cosines, where an objective needs a cosine head


class Settings(NamedTuple):
    """What a program is compiled for.

    Attributes:
        terms: names of terms with their sections, as pairs: a section is `weight` and settings.
        hidden: sizes of the hidden layers.
        steps: of a run.
        batch_size: examples of a batch; all of them, if there are fewer.
        per_class: examples of each class that a batch holds, if it holds a class; 0: as they come.
        running_decay: of the running sums; see `Objective`.
        hold_gradient_ratios: the weights of the terms, times `Run.strength`, are ratios to
            cross-entropy's gradient; see `GradientNorms`.
        smooths: whether labels are smoothed, by `Run.smoothing`.
        unlabelled: whether some examples have no class.
        corrupted: share of a view's numbers that come from other examples, for objectives that
            compare two views of an example.
        superclasses: of each class; empty: there are none.
    """

    terms: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()
    hidden: tuple[int, ...] = (256,)
    steps: int = 500
    batch_size: int = 128
    per_class: int = 0
    running_decay: float = 0.0
    hold_gradient_ratios: bool = False
    smooths: bool = False
    unlabelled: bool = False
    corrupted: float = 0.3
    superclasses: tuple[int, ...] = ()

    @property
    def needs(self) -> set[str]:
        """What the terms need; see `TermSpec`."""
        return needs_of({name: dict(section) for name, section in self.terms})


class Run(NamedTuple):
    """What a run is given; `vmap` adds an axis of runs.

    Attributes:
        key: of the initial values and the batches.
        rows: `[n]`, which examples it sees.
        labels: `[n]`, as it sees them; the number of classes stands for an example without one.
        weights: `[n]` of the examples; None: all are 1.
        rate: learning rate at the start; it falls to 0 as a cosine.
        decay: weight decay, relative to the learning rate.
        strength: what the weights of the terms are multiplied by.
        smoothing: of the labels.
    """

    key: Any
    rows: Any
    labels: Any
    weights: Any = None
    rate: Any = 2e-3
    decay: Any = 0.1
    strength: Any = 1.0
    smoothing: Any = 0.0


def layers_of(params: Params) -> int:
    """The number of layers, that of the classes included."""
    return sum(name.startswith("w") for name in params)


def hidden_of(params: Params, x: jax.Array) -> jax.Array:
    """The features on which the terms act, `[n, H]`."""
    for i in range(1, layers_of(params)):
        x = jax.nn.relu(x @ params[f"w{i}"] + params[f"b{i}"])
    return x


def logits_of(params: Params, hidden: jax.Array) -> jax.Array:
    """`[n, K]`."""
    last = layers_of(params)
    if f"b{last}" not in params:  # a cosine head
        return SCALE * cosine(hidden, params[f"w{last}"].T)
    return hidden @ params[f"w{last}"] + params[f"b{last}"]  # type: ignore[no-any-return]


def initial(key: jax.Array, sizes: tuple[int, ...], biased: bool = True) -> Params:
    """He's initial values of layers of these sizes, the first being that of the input."""
    keys = jax.random.split(key, len(sizes) - 1)
    draw = jax.nn.initializers.he_normal()
    biases = {f"b{i}": jnp.zeros(n) for i, n in enumerate(sizes[1:], 1)}
    if not biased:
        biases.pop(f"b{len(sizes) - 1}")
    shapes = itertools.pairwise(sizes)
    drawn = [draw(own, shape) for own, shape in zip(keys, shapes, strict=True)]
    return biases | {f"w{i}": weight for i, weight in enumerate(drawn, 1)}


def batches_of(
    settings: Settings, key: jax.Array, labels: jax.Array, num_classes: int, steps: jax.Array
) -> jax.Array:
    """Places of the examples of each step's batch among a run's, `[S, B]`.

    An epoch is a new order of all examples, which is cut into batches; what is left over is left
    out. With `per_class`, batches are drawn anew, with replacement.

    Args:
        settings: of the run.
        key: of the run.
        labels: `[n]`.
        num_classes: `K`.
        steps: `[S]`, numbers of steps that follow each other.
    """
    if settings.per_class:
        keys = jax.vmap(partial(jax.random.fold_in, key))(steps)
        return jax.vmap(lambda own: _balanced(settings, own, labels, num_classes))(keys)
    size = min(settings.batch_size, len(labels))
    if size == len(labels):  # an order would change nothing
        return jnp.broadcast_to(jnp.arange(size), (len(steps), size))
    per_epoch = len(labels) // size
    epochs = steps[0] // per_epoch + jnp.arange(len(steps) // per_epoch + 2)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 2**31 + 1)))(epochs)
    orders = jax.vmap(lambda own: jax.random.permutation(own, len(labels)))(keys)
    batches = orders[:, : per_epoch * size].reshape(-1, size)
    return batches[steps - epochs[0] * per_epoch]


def _balanced(settings: Settings, key: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Places of a batch that holds the same number of examples of some classes."""
    first, second = jax.random.split(key)
    per_class = settings.per_class
    classes = jax.random.permutation(first, num_classes)[: settings.batch_size // per_class]
    classes = jnp.repeat(classes, per_class)
    counts, by_class = jnp.bincount(labels, length=num_classes), jnp.argsort(labels)
    drawn = (jax.random.uniform(second, (len(classes),)) * counts[classes]).astype(int)
    return by_class[(jnp.cumsum(counts) - counts)[classes] + drawn]


def views_of(key: jax.Array, x: jax.Array, share: float) -> jax.Array:
    """Two views of each example, `[2 n, C]`: some numbers are those of other examples.

    The source is Bahri et al., "SCARF" (arXiv 2106.15147), section 3.
    """

    def view(key: jax.Array) -> jax.Array:
        which, other = jax.random.split(key)
        places = jax.random.randint(other, x.shape, 0, len(x))
        foreign = jnp.take_along_axis(x, places, axis=0)
        return jnp.where(jax.random.bernoulli(which, share, x.shape), foreign, x)

    return jnp.concatenate([view(own) for own in jax.random.split(key)])


@dataclass(frozen=True)
class Head:
    """A program that trains heads.

    Attributes:
        settings: what it is compiled for.
        num_classes: `K`.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> small = Head(Settings(hidden=(8,), steps=50, batch_size=4), num_classes=2)
        >>> x, labels = jnp.eye(4), jnp.array([0, 1, 0, 1])
        >>> run = Run(jax.random.key(0), jnp.arange(4), labels, rate=0.05)
        >>> params = jax.jit(small.train)(run, x)
        >>> logits_of(params, hidden_of(params, x)).argmax(axis=1).tolist()
        [0, 1, 0, 1]
    """

    settings: Settings
    num_classes: int

    def train(self, run: Run, x: jax.Array, shares: jax.Array | None = None) -> Params:
        """The parameters after all steps; see `start` and `advance`."""
        state, steps = self.start(run, x, shares), jnp.arange(self.settings.steps)
        return self.advance(state, run, x, shares, steps)[0]  # type: ignore[no-any-return]

    def start(self, run: Run, x: jax.Array, shares: jax.Array | None = None) -> Any:
        """The state before the first step: parameters, moments of the optimiser, the terms' state.

        Args:
            run: what differs between runs.
            x: `[N, C]` features, standardised.
            shares: `[K]`, of the classes.
        """
        settings, two_views = self.settings, "views" in self.settings.needs
        sizes = (x.shape[1], *settings.hidden, self.num_classes)
        params = initial(run.key, sizes, "cosine" not in settings.needs)
        batches = self._batches(run, jnp.arange(1))
        count = batches.shape[1] * (1 + two_views)
        logits = jax.ShapeDtypeStruct((count, self.num_classes), jnp.float32)
        features = {LAYER: jax.ShapeDtypeStruct((count, sizes[-2]), jnp.float32)}
        outputs, key = Outputs(features, logits, logits), jax.random.fold_in(run.key, 2**31)
        state = self._objective(run, shares).init(outputs, key)
        if state.params:
            params["terms"] = state.params
        return params, self._optimizer(run, params).init(params), state

    def advance(self, state: Any, run: Run, x: jax.Array, shares: Any, steps: jax.Array) -> Any:
        """The state after further steps, whose numbers are `steps`; arguments as in `start`."""
        inputs = steps, self._batches(run, steps)
        return lax.scan(partial(self._step, run, x, shares), state, inputs)[0]

    def _batches(self, run: Run, steps: jax.Array) -> jax.Array:
        return batches_of(self.settings, run.key, run.labels, self.num_classes, steps)

    def _objective(self, run: Run, shares: jax.Array | None) -> Objective:
        settings = self.settings
        per_epoch = max(1, len(run.labels) // settings.batch_size)
        scale = SCALE if "cosine" in settings.needs else 1.0
        context = TermContext(shares, scale, settings.superclasses, per_epoch)
        terms = {name: dict(section) for name, section in settings.terms}
        return Objective(terms, settings.running_decay, settings.hold_gradient_ratios, context)

    def _optimizer(self, run: Run, params: Params) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(1.0, self.settings.steps)
        return optax.chain(
            optax.scale_by_adam(),
            optax.add_decayed_weights(run.decay, {name: name[0] == "w" for name in params}),
            optax.scale_by_schedule(lambda count: -run.rate * schedule(count)),
        )

    def _step(
        self, run: Run, x: jax.Array, shares: Any, carry: Any, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[Any, None]:
        settings, (params, moments, state), (i, chosen) = self.settings, carry, inputs
        key, two_views = jax.random.fold_in(run.key, i), "views" in settings.needs
        rows = jax.nn.one_hot(run.labels[chosen], self.num_classes)
        if settings.smooths:
            rows = _smoothed(rows, run.smoothing)
        seen = x[run.rows[chosen]]
        where = None if run.weights is None else run.weights[chosen]
        if settings.unlabelled and not two_views:  # without labels only views can be compared
            where = (rows.sum(axis=1) > 0) * (1.0 if where is None else where)
        if two_views:
            seen = views_of(jax.random.fold_in(key, 1), seen, settings.corrupted)
            rows, where = jax.tree.map(lambda v: jnp.concatenate([v, v]), (rows, where))

        def cross_entropy(logits: jax.Array) -> jax.Array:
            each = optax.softmax_cross_entropy(logits, rows)
            if where is None and not settings.unlabelled:
                return each.mean()
            weight = rows.sum(axis=1) * (1.0 if where is None else where)
            return (each * weight).sum() / jnp.maximum(weight.sum(), 1e-12)

        objective = self._objective(run, shares)

        def loss(params: Params) -> tuple[jax.Array, Any]:
            layers = {name: own for name, own in params.items() if name != "terms"}
            hidden = hidden_of(layers, seen)
            read = lax.stop_gradient(hidden) if two_views else hidden  # then the head is a probe
            logits = logits_of(layers, read)
            outputs = Outputs({LAYER: hidden}, logits, rows, where)
            own = state if "terms" not in params else state.with_params(params["terms"])
            added, values, sums = shared_value(objective, outputs, own, run.strength)
            next_state = values.state
            if own.norms is not None:
                squares = self._squares(objective, layers, outputs, own, sums, cross_entropy)
                next_state = next_state._replace(norms=own.norms.update(squares))
            return cross_entropy(logits) + added, lax.stop_gradient(next_state)

        gradient, state = jax.grad(loss, has_aux=True)(params)
        updates, moments = self._optimizer(run, params).update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments, state), None

    def _squares(
        self,
        objective: Objective,
        layers: Params,
        outputs: Outputs,
        state: Any,
        sums: Any,
        cross_entropy: Callable[[jax.Array], jax.Array],
    ) -> dict[str, jax.Array]:
        """Squared norms of the gradients of cross-entropy and each term, at the features."""

        def of_hidden(hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = logits_of(layers, hidden)
            return cross_entropy(logits), logits

        _, pull = jax.vjp(of_hidden, outputs.features[LAYER])

        def at_layers(of_ce: Any, of_logits: jax.Array) -> dict[str, jax.Array]:
            return {LAYER: pull((jnp.asarray(of_ce, jnp.float32), of_logits))[0]}

        of_ce = at_layers(1.0, jnp.zeros_like(outputs.logits))
        of_term = term_gradients(objective, outputs, state, sums)
        return gradient_squares(of_ce, of_term, at_layers)


def _smoothed(rows: jax.Array, share: jax.Array) -> jax.Array:
    """Smoothed labels; an example without a class stays without one."""
    return optax.smooth_labels(rows, share) * rows.sum(axis=1, keepdims=True)
