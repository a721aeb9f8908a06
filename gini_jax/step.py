"""The training step: from a state and a batch to the next state, mapped over the devices once."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from gini_jax import losses
from gini_jax.augment import augment_batch, mix_batch
from gini_jax.config import OBJECTIVES
from gini_jax.data import Split
from gini_jax.parallel import AXIS, map_over_devices


@flax.struct.dataclass
class TrainState:
    """What a step changes; the same on all devices.

    Attributes:
        step: steps done.
        params, batch_stats: the model's variables.
        opt_state: the optimiser's.
        rng: `[2]` key data; each step's randomness is folded from it and the step.
        running: running class sums of all layers; None if they are off.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    rng: jax.Array
    running: losses.RunningSums | None

    @property
    def variables(self) -> dict[str, Any]:
        """Parameters and batch statistics, as the model takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class Experiment(NamedTuple):
    """What is fixed in a run: all that a step closes over."""

    config: Any
    model: nn.Module
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    num_classes: int
    image_size: int
    stored_shape: tuple[int, int, int]
    steps_per_epoch: int


def train_step(
    state: TrainState, batch: dict[str, jax.Array], *, experiment: Experiment
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimiser step on one global batch; runs mapped over the axis "batch".

    With `config.grad_accumulation` above 1 the batch is taken in as many parts, in two passes: the
    first gathers the class sums of all parts, the second the gradients. The terms are exactly those
    of the whole batch; batch normalisation sees a part at a time, over all devices.

    Args:
        state: replicated.
        batch: this device's share: `image [n, H, W, 3]` uint8 and `label [n]` int32.
        experiment: what is fixed.

    Returns:
        The next state and the global batch's metrics, both the same on all devices.
    """
    config = experiment.config
    num_parts = config.grad_accumulation
    images, targets, dropout_key = augmented_batch(state, batch, experiment, AXIS)
    device_key = jax.random.fold_in(dropout_key, lax.axis_index(AXIS))
    parts = {
        "image": images.reshape(num_parts, -1, *images.shape[1:]),
        "target": targets.reshape(num_parts, -1, experiment.num_classes),
        "dropout": jax.random.key_data(jax.random.split(device_key, num_parts)),
    }

    def forward(params, batch_stats, part):
        (logits, features), updates = experiment.model.apply(
            {"params": params, "batch_stats": batch_stats},
            part["image"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.wrap_key_data(part["dropout"])},
        )
        targets = part["target"]
        ce = optax.softmax_cross_entropy(logits, targets).mean() / num_parts
        accuracy = (logits.argmax(axis=-1) == targets.argmax(axis=-1)).mean() / num_parts
        with jax.named_scope("terms"):
            sums = objective_sums(features, targets, experiment)
        return ce, accuracy, sums, updates.get("batch_stats", batch_stats)

    total = None
    if num_parts > 1:
        of_parts = lax.map(lambda part: forward(state.params, state.batch_stats, part)[2], parts)
        total = lax.psum(jax.tree.map(lambda x: x.sum(axis=0), of_parts), AXIS)

    def loss_fn(params, batch_stats, part):
        ce, accuracy, sums, batch_stats = forward(params, batch_stats, part)
        with jax.named_scope("terms"):
            # Each device differentiates its own share of the sums: no collective in the backward
            # pass, and gradients that add over devices and parts.
            whole = lax.psum(lax.stop_gradient(sums), AXIS) if total is None else total
            (added, aux), linearized = losses.linearize_at(
                lambda sums: objective_terms(state, sums, experiment), whole, has_aux=True
            )
            share = linearized(sums) * lax.axis_size(AXIS)
        return config.loss.ce_weight * ce + share, (ce, accuracy, batch_stats, added, aux)

    def add_part(carry, part):
        gradients, ce, accuracy, batch_stats = carry
        more, aux = jax.grad(loss_fn, has_aux=True)(state.params, batch_stats, part)
        gradients = jax.tree.map(jnp.add, gradients, more)
        return (gradients, ce + aux[0], accuracy + aux[1], aux[2]), aux[3:]

    if num_parts == 1:
        only = jax.tree.map(lambda x: x[0], parts)
        gradients, (ce, accuracy, batch_stats, *rest) = jax.grad(loss_fn, has_aux=True)(
            state.params, state.batch_stats, only
        )
    else:
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        carry = (zeros, jnp.zeros(()), jnp.zeros(()), state.batch_stats)
        (gradients, ce, accuracy, batch_stats), rest = lax.scan(add_part, carry, parts)
        rest = jax.tree.map(lambda x: x[-1], rest)  # functions of the total: all the same
    added, (terms, running) = rest
    with jax.named_scope("optimizer"):
        gradients, ce, accuracy = lax.pmean((gradients, ce, accuracy), AXIS)
        updates, opt_state = experiment.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.global_norm(gradients)
    loss = config.loss.ce_weight * ce + added
    metrics = {"loss": loss, "ce": ce, "accuracy": accuracy, **terms, "gradient_norm": norm}
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        rng=state.rng,
        running=running,
    )
    return new_state, metrics


def augmented_batch(
    state: TrainState,
    batch: dict[str, jax.Array],
    experiment: Experiment,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A batch as the network sees it in a step, and the step's key for dropout.

    Args:
        state: for its key and step.
        batch: `image` and `label`, as in `train_step`.
        experiment: what is fixed.
        axis_name: the mapped axis that the batch is divided over, if there is one.

    Returns:
        Images `[n, H, W, 3]`, label rows `[n, K]` that sum to 1, and the key.
    """
    config, size = experiment.config.augment, experiment.image_size
    step_key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    image_key, mix_key, dropout_key = jax.random.split(step_key, 3)
    labels = jax.nn.one_hot(batch["label"], experiment.num_classes)
    position = jnp.arange(len(labels))  # in the global batch
    if axis_name is not None:
        position += lax.axis_index(axis_name) * len(labels)
    with jax.named_scope("augment"):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(image_key, position)
        images = augment_batch(config, keys, batch["image"], size)
        images, labels = mix_batch(config, mix_key, images, labels, axis_name)
    return images, optax.smooth_labels(labels, experiment.config.loss.label_smoothing), dropout_key


def objective_sums(
    features: dict[str, jax.Array], labels: jax.Array, experiment: Experiment
) -> tuple[Any, Any]:
    """The device's own class sums of the layers that the terms act on; see `losses.layer_sums`."""
    if experiment.config.objective == "ce":
        return {}, None
    impurity, _ = OBJECTIVES[experiment.config.objective]
    tapped = {layer: features[layer] for layer in experiment.config.loss.layers}
    return losses.layer_sums(tapped, labels, impurity=impurity or "gini")


def objective_terms(
    state: TrainState, sums: Any, experiment: Experiment
) -> tuple[jax.Array, tuple[dict[str, jax.Array], losses.RunningSums | None]]:
    """What the objective adds to cross-entropy, with its terms and the next running sums.

    Args:
        state: for the step, before which the terms are off, and the running sums.
        sums: those of the global batch.
        experiment: what is fixed.
    """
    if experiment.config.objective == "ce":
        return jnp.zeros(()), ({}, state.running)
    config = experiment.config.loss
    impurity, with_kl = OBJECTIVES[experiment.config.objective]
    running = state.running
    if running is not None:
        sums, running = running.update(sums, config.running_decay)
    on = state.step >= (config.start_epoch - 1) * experiment.steps_per_epoch
    added, terms = losses.discriminability_from_sums(
        sums[0],
        signed_sums=sums[1],
        gini_weight=jnp.where(on, config.gini_weight if impurity else 0.0, 0.0),
        kl_weight=jnp.where(on, config.kl_weight if with_kl else 0.0, 0.0),
        impurity=impurity or "gini",
    )
    return added, (terms, running)


def row_shape(image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """How an image `[H, W, 3]` lies on a device: `[H, W * 3]`, or `[H * W * 3]`.

    The first where rows fill the tiles of a TPU's memory, 32 by 128 bytes. In any other layout it
    would copy the whole set, in every step, to take one batch out of it.

    Example:
        >>> row_shape((256, 256, 3)), row_shape((32, 32, 3))
        ((256, 768), (3072,))
    """
    height, width, channels = image_shape
    tiled = height % 32 == 0 and width * channels % 128 == 0
    return (height, width * channels) if tiled else (height * width * channels,)


def resident(split: Split) -> Split:
    """A split as it lies on the devices, an image a row; see `row_shape`."""
    n, *image_shape = split.images.shape
    return Split(split.images.reshape(n, *row_shape(image_shape)), split.labels)


def resident_batch(
    state: TrainState, data: Split, order: jax.Array, experiment: Experiment
) -> dict[str, jax.Array]:
    """A device's share of a step's batch, out of the training split that lies on it.

    Args:
        state: for its step.
        data: the whole training split; see `resident`.
        order: `[steps, n]`, this device's examples in each step of the epoch.
        experiment: what is fixed.
    """
    index = order[state.step % experiment.steps_per_epoch]
    return streamed_batch(Split(data.images[index], data.labels[index]), experiment)


def streamed_batch(batch: Split, experiment: Experiment) -> dict[str, jax.Array]:
    """A batch whose images are rows, as `train_step` takes it; see `row_shape`."""
    images = batch.images.reshape(-1, *experiment.stored_shape)
    return {"image": images, "label": batch.labels}


def create_step(
    experiment: Experiment,
    devices: Sequence[jax.Device] | None = None,
    num_steps: int = 1,
    feed: str = "device",
) -> Any:
    """The mapped, compiled-on-first-call step of a run, or several of them in one call.

    Args:
        experiment: what is fixed.
        devices: to map over, those of a topology that is not there included; all by default.
        num_steps: steps in a call, so that a small network does not wait for the host.
        feed: `device` or `stream`.

    Returns:
        From a replicated state (donated) and what the feed gives to the next state and metrics
        `[num_steps]`. `device` gives the replicated training split (see `resident`) and the
        epoch's order `[local devices, steps, n]`; `stream` the batches of the call, images
        `[local devices, num_steps, n, ...]` and labels `[local devices, num_steps, n]`.
    """

    def device_step(state, data, order):
        def one(state, _):
            batch = resident_batch(state, data, order, experiment)
            return train_step(state, batch, experiment=experiment)

        return _in_turn(one, state, None, num_steps)

    def stream_step(state, batches):
        def one(state, batch):
            return train_step(state, streamed_batch(batch, experiment), experiment=experiment)

        return _in_turn(one, state, batches, num_steps)

    if feed == "device":
        return map_over_devices(device_step, devices, in_axes=(None, None, 0))
    return map_over_devices(stream_step, devices, in_axes=(None, 0))


def _in_turn(one: Callable[..., Any], state: TrainState, batches: Any, num_steps: int) -> Any:
    """Steps one after the other; their metrics have a leading axis."""
    if num_steps > 1:
        return lax.scan(one, state, batches, length=num_steps)
    state, metrics = one(state, jax.tree.map(lambda x: x[0], batches))
    return state, jax.tree.map(lambda x: x[None], metrics)


def init_state(experiment: Experiment) -> TrainState:
    """The state before the first step, a pure function of the config's seed."""
    size = experiment.image_size

    @jax.jit
    def init(key):
        params_key, train_key = jax.random.split(key)
        variables = experiment.model.init(params_key, jnp.zeros((1, size, size, 3)))
        running = None
        if experiment.config.loss.running_decay > 0 and experiment.config.objective != "ce":
            running = losses.RunningSums.zeros_like(_sums_shapes(experiment))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=experiment.optimizer.init(variables["params"]),
            rng=jax.random.key_data(train_key),
            running=running,
        )

    return init(jax.random.key(experiment.config.seed))


def _sums_shapes(experiment: Experiment) -> Any:
    """Shapes of what `objective_sums` gives."""
    shapes = feature_shapes(experiment.model, experiment.image_size)
    labels = jax.ShapeDtypeStruct((1, experiment.num_classes), jnp.float32)
    return jax.eval_shape(partial(objective_sums, experiment=experiment), shapes, labels)


def feature_shapes(model: nn.Module, image_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a model's features for one image, without computing them."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    (_, features), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    return features
