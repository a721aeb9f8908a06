"""The state of a run and its fixed parts: what a step changes, and what it closes over."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Float32
from ml_collections import ConfigDict

from gini_jax.devices import program
from gini_jax.losses.objective import Objective, ObjectiveState
from gini_jax.losses.term import Outputs


@flax.struct.dataclass
class TrainState:
    """What a step changes; the same on all devices.

    Attributes:
        step: number of steps done, int32 scalar.
        params: the model's parameters.
        batch_stats: the model's running statistics.
        opt_state: the optimiser's state.
        rng: key data, `[2]` uint32; each step derives its random numbers from it and its number.
        terms: the state of the loss's terms.
        average: exponential moving average of the variables; None without `optimizer.ema_decay`.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    rng: jax.Array
    terms: ObjectiveState
    average: Any = None

    @property
    def trainable(self) -> dict[str, Any]:
        """What the optimiser updates: the model's parameters, and those of the terms if any."""
        if self.terms.params is None:
            return self.params
        return {"model": self.params, "terms": self.terms.params}

    def with_trainable(self, trainable: dict[str, Any]) -> "TrainState":
        """The state with other values of `trainable`."""
        if self.terms.params is None:
            return self.replace(params=trainable)  # type: ignore[attr-defined]
        terms = self.terms.with_params(trainable["terms"])
        return self.replace(params=trainable["model"], terms=terms)  # type: ignore[attr-defined]

    @property
    def variables(self) -> dict[str, Any]:
        """Parameters and batch statistics, as the model takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> dict[str, Any]:
        """The variables that are evaluated and exported: the moving average, if there is one."""
        return self.variables if self.average is None else self.average


class Experiment(NamedTuple):
    """The fixed parts of a run: everything that a step closes over."""

    config: ConfigDict
    model: nn.Module
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    objective: Objective
    num_classes: int
    image_size: int
    stored_shape: tuple[int, ...]
    steps_per_epoch: int
    class_weights: Float32[np.ndarray, " K"] | None = None
    has_unlabelled: bool = False
    automatic_batch: bool = False


def init_state(experiment: Experiment) -> TrainState:
    """The state before the first step, a pure function of the config's seed."""
    init = program("init", lambda: jax.jit(_initial_state(experiment)))
    return init(jax.random.key(experiment.config.seed))


def _initial_state(experiment: Experiment) -> Callable[[jax.Array], TrainState]:
    """From a key to the state before the first step."""
    size = experiment.image_size

    def init(key: jax.Array) -> TrainState:
        params_key, train_key = jax.random.split(key)
        variables = experiment.model.init(params_key, jnp.zeros((1, size, size, 3)))
        terms_key = jax.random.fold_in(params_key, 1)
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=None,
            rng=jax.random.key_data(train_key),
            terms=experiment.objective.init(output_shapes(experiment), terms_key),
        )
        state = state.replace(  # type: ignore[attr-defined]
            opt_state=experiment.optimizer.init(state.trainable)
        )
        average = state.variables if experiment.config.optimizer.ema_decay else None
        return state.replace(average=average)  # type: ignore[attr-defined,no-any-return]

    return init


@jax.jit
def not_finite(tree: Any) -> dict[str, Any]:
    """By path, whether an array of a tree holds a NaN or an infinity.

    Examples:
        >>> {k: bool(v) for k, v in not_finite({"a": jnp.ones(2), "b": jnp.array(jnp.nan)}).items()}
        {'a': False, 'b': True}
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): ~jnp.isfinite(leaf).all()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }


def output_shapes(experiment: Experiment) -> Outputs:
    """Shapes of the outputs that the terms see, for one example."""
    shapes = feature_shapes(experiment.model, experiment.image_size)
    tapped = {layer: shapes[layer] for layer in experiment.config.loss.layers}
    rows = jax.ShapeDtypeStruct((1, experiment.num_classes), jnp.float32)
    return Outputs(tapped, rows, rows)


def feature_shapes(model: nn.Module, image_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a model's features for one image, without computing them."""
    return _shapes(model, image_size)[0]


@lru_cache(maxsize=8)
def _shapes(model: nn.Module, image_size: int) -> tuple[dict[str, jax.ShapeDtypeStruct], Any]:
    """Shapes of a model's features for one image, and of its variables."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    (_, features), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    return features, variables


def perturbation_shapes(model: nn.Module, image_size: int) -> dict[str, Any]:
    """Shapes of flax's collection `perturbations` for one image: an array for every layer.

    They include everything else that the network perturbs: flax needs all of them, or none.
    """
    features, variables = _shapes(model, image_size)
    return {**features, **variables.get("perturbations", {})}


@lru_cache(maxsize=8)
def layers_before_logits(model: nn.Module, image_size: int) -> frozenset[str]:
    """The layers that a network perturbs and on which its logits depend; see `layers.perturbed`.

    At other layers the gradient of cross-entropy is unknown or 0. The layers are found in the
    traced program, without running it, so a layer behind `stop_gradient` counts as well.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    layers, variables = perturbation_shapes(model, image_size), _shapes(model, image_size)[1]

    def logits(perturbations: Any, variables: Any, images: jax.Array) -> jax.Array:
        perturbed = {**variables, "perturbations": perturbations}
        return model.apply(perturbed, images)[0]  # type: ignore[index]

    program = jax.make_jaxpr(logits)(layers, variables, images).jaxpr
    _, used = dce_jaxpr(program, [True])
    reached = jax.tree.unflatten(jax.tree.structure(layers), used[: len(jax.tree.leaves(layers))])
    return frozenset(layer for layer, is_used in reached.items() if is_used is True)


def why_not_measured(model: nn.Module, image_size: int, layers: Iterable[str]) -> str:
    """The reason why the terms' gradient ratios are not measured at some layers; "" if they are."""
    if getattr(model, "head", "") == "probe":
        return "the head is a probe, so cross-entropy has no gradient below it"
    before = layers_before_logits(model, image_size)
    if not before:
        return (
            f"{type(model).__name__} calls self.perturb for none of the layers before its logits, "
            "by which the terms' gradients are measured (CONTRIBUTING.md, Network)"
        )
    behind = [layer for layer in layers if layer not in before]
    if not behind:
        return ""
    return (
        f"the logits do not depend on {', '.join(behind)}, or the network does not call "
        "self.perturb there, so cross-entropy's gradient is 0 or unknown; --config.loss.layers may "
        f"be some of {', '.join(sorted(before))}"
    )


def measures_gradient_ratios(experiment: Experiment) -> bool:
    """Whether each term's gradient norm is measured relative to cross-entropy's.

    This needs a network that perturbs all the terms' layers, and logits that depend on them.
    """
    layers = experiment.config.loss.layers
    return not why_not_measured(experiment.model, experiment.image_size, layers)
