"""Tries a run's plugins on shapes alone, before any data are loaded."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from gini_jax.data.augment import AUGMENTATIONS, augmentations_of
from gini_jax.errors import InputError, first_line
from gini_jax.losses.objective import Objective
from gini_jax.losses.term import Outputs, TermContext
from gini_jax.losses.terms import weight_of
from gini_jax.training.optim import create_optimizer
from gini_jax.training.schedules import create_schedule
from gini_jax.training.state import feature_shapes
from gini_jax.training.step_metrics import METRICS

NETWORK = (
    "a network is a flax.linen module with the fields num_classes and axis_name, which is called "
    "as network(images, train=False, example_index=None), and returns logits [N, K] and a "
    "dictionary of features [N, ..., C] by layer, with 'pooled' [N, C] among them"
)
TERM = (
    "a term is a loss(features, labels, *, where=None, axis_name=None) that returns a scalar, or a "
    "class with init and __call__ like gini_jax.losses.term.Term, or with sums and of_sums like "
    "SumTerm, whose fields all have defaults"
)
SCHEDULE = (
    "a schedule is a dataclass with extends and rates, called with the highest rate and Steps, "
    "that returns a function from the step, which jax traces, to the rate, a scalar from 0 on"
)
OPTIMIZER = (
    "an optimiser is a dataclass whose fields all have defaults, called with a schedule and a "
    "Decay, that returns an optax.GradientTransformation"
)
AUGMENTATION = (
    "an augmentation is a function of a key, an image [H, W, 3] in [0, 1] and its value, which jax "
    "traces, that returns an image of that shape"
)
METRIC = (
    "a step metric is a function of the step's Outputs that returns a number for each example [n]"
)
SEE = "docs/extending.md shows one"


def tried(part: str, contract: str, call: Callable[[], Any]) -> Any:
    """Returns the result of a call of a plugin's code.

    Args:
        part: the setting and its value, for the error.
        contract: what such a plugin must be.
        call: the call.

    Raises:
        InputError: the call raises; the error states the contract.

    Examples:
        >>> tried("loss.terms.parts:mine", "a term is a loss", lambda: 1 / 0)
        Traceback (most recent call last):
        gini_jax.errors.InputError: loss.terms.parts:mine fails (ZeroDivisionError: ...); a term...
    """
    try:
        return call()
    except InputError:
        raise
    except Exception as error:
        raise _misfit(part, f"fails ({type(error).__name__}: {first_line(error)})", contract) from (
            error
        )


def _misfit(part: str, what: str, contract: str) -> InputError:
    return InputError(f"{part} {what}; {contract}; {SEE}")


def check_network(name: str, model: nn.Module, num_classes: int) -> None:
    """Traces a forward pass in training mode, and refuses a network that breaks its contract.

    Args:
        name: `config.model.name`.
        model: the network.
        num_classes: `K`, which it was made for.

    Raises:
        InputError: the network fails, or breaks its contract.
    """
    part = f"model.name={name!r}"
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)

    def outputs(key: jax.Array, images: jax.Array) -> Any:
        keys = {"params": key, "dropout": key}
        options: Any = {"train": True, "example_index": jnp.arange(2)}
        return model.init_with_output(keys, images, **options)[0]

    found = tried(part, NETWORK, lambda: jax.eval_shape(outputs, jax.random.key(0), images))
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
        raise _misfit(part, f"returns a {type(found).__name__}", NETWORK)
    logits, features = found
    if logits.shape != (2, num_classes):
        shape = f"[{', '.join(map(str, logits.shape))}] for N=2, K={num_classes}"
        raise _misfit(part, f"returns logits of shape {shape}", NETWORK)
    if "pooled" not in features:
        raise _misfit(part, f"returns the features {sorted(features)}", NETWORK)
    for layer, values in features.items():
        if values.ndim < 2 or values.shape[0] != 2 or (layer == "pooled" and values.ndim != 2):
            raise _misfit(part, f"returns {layer} of shape {list(values.shape)} for N=2", NETWORK)


def check_rates(config: ConfigDict) -> None:
    """Refuses a schedule or an optimiser that breaks its contract.

    Raises:
        InputError: one fails, or a learning rate is not a number of at least 0.
    """
    created = lambda: create_schedule(config.schedule, 1000, config.num_epochs)  # noqa: E731
    if ":" not in config.schedule.name + config.optimizer.name:  # the package's, with settings
        create_optimizer(config.optimizer, created())
        return
    part = f"schedule.name={config.schedule.name!r}"
    schedule = tried(part, SCHEDULE, created)
    for place in (0, 500 * config.num_epochs, 1000 * config.num_epochs - 1):
        rate = tried(part, SCHEDULE, partial(jax.jit(schedule), jnp.asarray(place)))
        if getattr(rate, "shape", None) != () or not float(rate) >= 0:
            raise _misfit(part, f"gives the rate {rate}", SCHEDULE)
    part = f"optimizer.name={config.optimizer.name!r}"
    optimizer = tried(part, OPTIMIZER, lambda: create_optimizer(config.optimizer, schedule))
    params = {"kernel": jnp.ones((2, 2))}

    def step() -> Any:
        state = optimizer.init(params)
        updates, _ = optimizer.update(params, state, params)
        return jax.tree.map(lambda x, update: x + update, params, updates)

    if jax.tree.map(jnp.shape, tried(part, OPTIMIZER, lambda: jax.eval_shape(step))) != {
        "kernel": (2, 2)
    }:
        raise _misfit(part, "gives updates of another shape than the parameters", OPTIMIZER)


def check_functions(config: ConfigDict) -> None:
    """Refuses plugin augmentations and step metrics that break their contract.

    Raises:
        InputError: one fails, or breaks its contract.
    """
    image, key = jax.ShapeDtypeStruct((8, 8, 3), jnp.float32), jax.random.key(0)
    for name, (augmentation, value) in augmentations_of(config.augment).items():
        if name not in AUGMENTATIONS and value:
            part, change = f"augment.{name}", augmentation.change
            call = lambda: jax.eval_shape(lambda x: change(key, x, value), image)  # noqa: B023, E731
            found = tried(part, AUGMENTATION, call)
            if getattr(found, "shape", None) != image.shape:
                raise _misfit(part, f"returns {_shown(found)} for an image [8, 8, 3]", AUGMENTATION)
    rows = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    outputs = ({layer: rows for layer in config.loss.layers}, rows, rows)
    for name in config.step_metrics:
        if ":" in name:
            part, metric = f"step_metrics={name!r}", METRICS.find(name)
            call = lambda: jax.eval_shape(lambda *x: metric(Outputs(*x)), *outputs)  # noqa: B023, E731
            found = tried(part, METRIC, call)
            if getattr(found, "shape", None) != (2,) or found.dtype == jnp.complex64:
                raise _misfit(part, f"returns {_shown(found)} for 2 examples", METRIC)


def _shown(found: Any) -> str:
    return f"shape {list(found.shape)}" if hasattr(found, "shape") else f"a {type(found).__name__}"


def check_terms(config: ConfigDict, model: nn.Module) -> None:
    """Refuses terms that fail, and term settings that the loss functions reject.

    Args:
        config: the run's settings.
        model: its network.

    Raises:
        InputError: names the term, and gives its loss function's error message.
    """
    shapes = feature_shapes(model, 32)
    features = {
        layer: jax.ShapeDtypeStruct((2, *shapes[layer].shape[1:]), shapes[layer].dtype)
        for layer in config.loss.layers
    }
    for key, section in config.loss.terms.to_dict().items():
        if not weight_of(section):
            continue
        part = f"loss.terms.{key}"
        if ":" in section.get("name", key):
            value = tried(part, TERM, partial(_traced, key, section, features))
            if value.shape != ():
                raise _misfit(part, f"returns an array of shape {list(value.shape)}", TERM)
        elif len(section) > 1:
            try:
                _traced(key, section, features)
            except ValueError as error:
                raise InputError(f"{part}={section}: {error}") from error


def _traced(key: str, section: dict[str, Any], features: dict[str, Any]) -> Any:
    """The shape of a term's value for two examples of two classes."""
    context = TermContext(jnp.full(2, 0.5), superclasses=(0, 0))
    objective = Objective({key: section | {"weight": 1.0}}, context=context)

    def value(features: Any, rng: jax.Array) -> Any:
        outputs = Outputs(features, jnp.zeros((2, 2)), jnp.eye(2))
        state = objective.init(outputs, rng)
        of_sums = objective.of_sums(objective.sums(outputs), state, 1.0)
        return (of_sums.terms | objective.of_outputs(outputs, state, 1.0).terms)[key]

    return jax.eval_shape(value, features, jax.random.key(0))
