"""The training step: from a state and a batch to the next state, mapped over the devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from gini_jax.data.augment import augment_batch, mix_batch
from gini_jax.data.loader import as_images, resident_batch
from gini_jax.data.source import Split
from gini_jax.devices import AXIS, map_over_devices
from gini_jax.losses.terms import needs_of
from gini_jax.models.frozen import body_of, has_body, with_body
from gini_jax.training.gradients import Batch, accumulated_gradients, batch_gradients
from gini_jax.training.pseudo_labels import is_labelled
from gini_jax.training.state import (
    Experiment,
    TrainState,
)


def train_step(
    state: TrainState, batch: Split, *, experiment: Experiment
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimiser step on one global batch; runs mapped over the axis "batch".

    Args:
        state: replicated.
        batch: this device's part: images `[n, H, W, 3]` uint8 and labels `[n]` int32.
        experiment: the fixed parts of the run.

    Returns:
        The next state and the global batch's metrics, both the same on all devices.
    """
    config, objective = experiment.config, experiment.objective
    seen = augmented_batch(state, batch, experiment, AXIS)
    if config.grad_accumulation > 1:
        gradients, forward = accumulated_gradients(state, seen, experiment)
    else:
        gradients, forward = batch_gradients(state, seen, experiment)
    with jax.named_scope("optimizer"):
        gradients, ce, metrics, squares = lax.pmean(
            (gradients, forward.ce, forward.metrics, forward.squares), AXIS
        )
        # Each device's gradient is that of its own mean, D times that of the global mean. Dividing
        # the squares by D makes them independent of the number D of devices.
        squares = {name: square / lax.axis_size(AXIS) for name, square in squares.items()}
        updates, opt_state = experiment.optimizer.update(
            gradients, state.opt_state, state.trainable
        )
        trainable = optax.apply_updates(state.trainable, updates)
        norm = optax.global_norm(gradients)
    loss = config.loss.ce_weight * ce + forward.values.added
    metrics = {"loss": loss, "ce": ce, **metrics, **forward.values.terms}
    weights = objective.weights_at(state.terms)
    metrics |= gradient_ratios(squares, weights)
    if state.terms.norms is not None:
        metrics |= {f"weight_{name}": weight for name, weight in weights.items()}
    terms = forward.values.state
    if terms.norms is not None:
        terms = terms._replace(norms=terms.norms.update(squares))
    new_state = TrainState(
        step=state.step + 1,
        params=state.params,
        batch_stats=forward.batch_stats,
        opt_state=opt_state,
        rng=state.rng,
        terms=terms,
    ).with_trainable(trainable)
    new_state = with_average(new_state, state.average, config.optimizer.ema_decay)
    return new_state, metrics | {"gradient_norm": norm}


def with_average(state: TrainState, average: Any, final_decay: float) -> TrainState:
    """A new state, with the moving average of the variables after its step."""
    if average is None:
        return state
    # The decay rises to `final_decay`, so that the average soon forgets the initial weights.
    decay = jnp.minimum(final_decay, state.step / (9.0 + state.step))
    average = optax.incremental_update(state.variables, average, 1.0 - decay)
    if has_body(average):  # which never changes, but for rounding
        average = with_body(average, body_of(state.variables))
    return state.replace(average=average)  # type: ignore[attr-defined]


def gradient_ratios(
    squares: dict[str, Float[Array, ""]], weights: dict[str, Any]
) -> dict[str, Float[Array, ""]]:
    """By term, the norm of its weighted gradient at its layers over that of cross-entropy.

    Args:
        squares: the squared norms, averaged over the devices; empty if they are not known.
        weights: by term, the step's weight.
    """
    if not squares:
        return {}
    ce = jnp.maximum(squares["ce"], 1e-30)
    return {
        f"gradient_ratio_{k}": weight * jnp.sqrt(squares[k] / ce) for k, weight in weights.items()
    }


def augmented_batch(
    state: TrainState, batch: Split, experiment: Experiment, axis_name: str | None = None
) -> Batch:
    """A batch as the network sees it in a step.

    If a term needs two views, the batch holds one view of all images, then the other.

    Args:
        state: provides the key and the step.
        batch: images and labels, as in `train_step`.
        experiment: the fixed parts of the run.
        axis_name: the mapped axis that the batch is divided over, if there is one.
    """
    config, size = experiment.config.augment, experiment.image_size
    step_key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    image_key, mix_key, dropout_key = jax.random.split(step_key, 3)
    rows = jax.nn.one_hot(batch.labels, experiment.num_classes)
    example_index, devices = jnp.arange(len(rows)), 1
    if axis_name is not None:
        devices = lax.axis_size(axis_name)
        example_index += lax.axis_index(axis_name) * len(rows)

    def view(image_key: jax.Array, mix_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(image_key, example_index)
        images = augment_batch(config, keys, batch.images, size)
        images, labels = mix_batch(config, mix_key, images, rows, axis_name)
        labels = optax.smooth_labels(labels, experiment.config.loss.label_smoothing)
        if experiment.has_unlabelled:
            labels *= is_labelled(rows)[:, None]
        return images, labels

    with jax.named_scope("augment"):
        images, labels = view(image_key, mix_key)
        if "views" in needs_of(experiment.config.loss.terms):
            others = view(*(jax.random.fold_in(key, 1) for key in (image_key, mix_key)))
            images, labels = map(jnp.concatenate, zip((images, labels), others, strict=True))
            example_index = jnp.concatenate([example_index, example_index + len(rows) * devices])
    return Batch(images, labels, example_index, dropout_key)


def create_step(
    experiment: Experiment,
    devices: Sequence[jax.Device] | None = None,
    num_steps: int = 1,
    feed: str = "device",
) -> Any:
    """The mapped step of a run, or several in one call; compiled when first called.

    Args:
        experiment: the fixed parts of the run.
        devices: to map over; they need not be present on this machine; all by default.
        num_steps: steps per call; with more than one, a small network waits less for the host.
        feed: `device` or `stream`.

    Returns:
        A function from a replicated state (donated) and the feed's arguments to the next state and
        metrics `[num_steps]`. The feed `device` gives the replicated training split (see
        `loader.resident`) and the epoch's order `[local devices, steps, n]`. The feed `stream`
        gives the batches of the call: images `[local devices, num_steps, n, ...]` and labels
        `[local devices, num_steps, n]`.
    """
    shape = experiment.stored_shape

    def device_step(state: TrainState, data: Split, order: jax.Array) -> Any:
        def one(state: TrainState, _: Any) -> Any:
            batch = resident_batch(data, order, state.step, shape)
            return train_step(state, batch, experiment=experiment)

        return _in_turn(one, state, None, num_steps)

    def stream_step(state: TrainState, batches: Split) -> Any:
        def one(state: TrainState, batch: Split) -> Any:
            return train_step(state, as_images(batch, shape), experiment=experiment)

        return _in_turn(one, state, batches, num_steps)

    if feed == "device":
        return map_over_devices(device_step, devices, in_axes=(None, None, 0))
    return map_over_devices(stream_step, devices, in_axes=(None, 0))


def _in_turn(one: Callable[..., Any], state: TrainState, batches: Any, num_steps: int) -> Any:
    """Runs steps in sequence; their metrics get a leading axis."""
    if num_steps > 1:
        return lax.scan(one, state, batches, length=num_steps)
    state, metrics = one(state, jax.tree.map(lambda x: x[0], batches))
    return state, jax.tree.map(lambda x: x[None], metrics)
