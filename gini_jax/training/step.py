"""The training step: from a state and a batch to the next state, mapped over the devices."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int32

from gini_jax.data.augment import augment_batch, mix_batch, standardize
from gini_jax.data.loader import as_images, resident_batch
from gini_jax.data.source import Split
from gini_jax.devices import AXIS, map_over_devices
from gini_jax.losses.objective import (
    gradient_squares,
    shared_value,
    term_gradients,
)
from gini_jax.losses.term import Outputs
from gini_jax.losses.terms import needs_of
from gini_jax.training.pseudo_labels import is_labelled, mean_where, with_own_labels
from gini_jax.training.state import (
    Experiment,
    TrainState,
    measures_gradient_ratios,
    perturbation_shapes,
)
from gini_jax.training.step_metrics import metrics_of


class Batch(NamedTuple):
    """A batch, or a part of one, as the network sees it.

    Attributes:
        images: augmented.
        labels: rows that sum to 1; zeros for an image without a label.
        example_index: each example's place in the global batch.
        key: the step's key for dropout, the same for all parts.
    """

    images: Float[Array, "n H W 3"]
    labels: Float[Array, "n K"]
    example_index: Int32[Array, " n"]
    key: jax.Array


class Forward(NamedTuple):
    """What a forward pass gives besides the loss.

    Attributes:
        ce: cross-entropy, the mean over this device's examples.
        metrics: by name, the means over this device's examples; see `metrics_of`.
        batch_stats: the model's next running statistics.
        values: the terms' values on the global batch; None between two micro-batches.
        squares: squared norms of gradients with respect to the features at `loss.layers`: of
            cross-entropy under `ce`, and of each term at weight 1, whether it acts through the
            features or the logits. Empty if they are not measured; see `measures_gradient_ratios`.
    """

    ce: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]
    batch_stats: Any
    values: Any  # Values
    squares: dict[str, Float[Array, ""]]


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


def batch_gradients(
    state: TrainState,
    batch: Batch,
    experiment: Experiment,
    total: Any = None,
    fraction: float = 1.0,
) -> tuple[Any, Forward]:
    """Gradients of this device's part of a batch.

    Args:
        state: the state before the step.
        batch: the part, or a micro-batch of it.
        experiment: the fixed parts of the run.
        total: the sums that the terms are functions of, if they have already been gathered.
        fraction: the micro-batch's fraction of the part; it scales cross-entropy.

    Returns:
        Gradients, to be averaged over devices and summed over micro-batches; and the forward pass.
    """
    config, objective = experiment.config, experiment.objective
    start = (config.loss.start_epoch - 1) * experiment.steps_per_epoch
    ramp = config.loss.ramp_epochs * experiment.steps_per_epoch
    scale = jnp.where(state.step >= start, 1.0, 0.0)
    if ramp:
        scale = jnp.clip((state.step + 1 - start) / ramp, 0.0, 1.0)
    perturbations = zero_perturbations(batch, experiment)

    def losses(trainable: Any, perturbations: Any) -> tuple[tuple[jax.Array, ...], Any]:
        there = state.with_trainable(trainable)
        outputs, batch_stats = apply_model(
            there.params, state.batch_stats, batch, experiment, perturbations
        )
        outputs, *means = classified(outputs, experiment)
        ce, metrics = jax.tree.map(lambda mean: mean * fraction, means)
        of_term = {}
        with jax.named_scope("terms"):
            of_terms, values, whole = shared_value(objective, outputs, there.terms, scale, total)
            if perturbations:
                of_term = term_gradients(objective, outputs, there.terms, whole)
        forward = Forward(ce, metrics, batch_stats, values, {})
        scalars = config.loss.ce_weight * ce, of_terms
        return (*scalars, outputs.logits), (forward, lax.stop_gradient(of_term))

    (ce, of_terms, logits), pull, (forward, of_term) = jax.vjp(
        losses, state.trainable, perturbations, has_aux=True
    )
    gradients, _ = pull((jnp.ones_like(ce), jnp.ones_like(of_terms), jnp.zeros_like(logits)))
    if perturbations:

        def at_layers(of_ce: float, of_logits: jax.Array) -> dict[str, jax.Array]:
            # XLA prunes this further pass to the layers after the first of `loss.layers`.
            _, found = pull((jnp.full_like(ce, of_ce), jnp.zeros_like(of_terms), of_logits))
            return {layer: found[layer] for layer in config.loss.layers}

        of_ce = at_layers(1.0, jnp.zeros_like(logits))
        forward = forward._replace(squares=gradient_squares(of_ce, of_term, at_layers))
    return gradients, forward


def classified(
    outputs: Outputs, experiment: Experiment
) -> tuple[Outputs, Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The outputs with all labels, and this device's cross-entropy and metrics.

    If some images are unlabelled, both are this device's part of the mean over those that count.
    """
    weights = 1.0 if experiment.class_weights is None else experiment.class_weights
    values = {name: metric(outputs) for name, metric in metrics_of(experiment.config).items()}
    if not experiment.has_unlabelled:
        each = optax.softmax_cross_entropy(outputs.logits, outputs.labels * weights)
        return outputs, each.mean(), {name: x.mean() for name, x in values.items()}
    labelled = is_labelled(outputs.labels).astype(jnp.float32)
    outputs = with_own_labels(outputs, experiment.config.loss.pseudo_confidence)
    each = optax.softmax_cross_entropy(outputs.logits, outputs.labels * weights)
    metrics = {name: mean_where(x, labelled, AXIS) for name, x in values.items()}
    return outputs, mean_where(each, outputs.where, AXIS), metrics


def zero_perturbations(batch: Batch, experiment: Experiment) -> dict[str, Any]:
    """Zeros by layer; the gradient with respect to them is that of the layer's features.

    Empty where there is no term, or `measures_gradient_ratios` is false.
    """
    if not experiment.objective.weights or not measures_gradient_ratios(experiment):
        return {}
    shapes = perturbation_shapes(experiment.model, experiment.image_size)
    size = len(batch.images)
    return jax.tree.map(lambda one: jnp.zeros((size, *one.shape[1:]), one.dtype), shapes)


def accumulated_gradients(
    state: TrainState, batch: Batch, experiment: Experiment
) -> tuple[Any, Forward]:
    """Gradients of this device's part of a batch, taken in `config.grad_accumulation` parts.

    There are two passes over the parts: the first gathers the sums of all parts, the second the
    gradients. So the terms are exactly those of the whole batch. Batch normalisation sees one part
    at a time, over all devices.
    """
    num_parts = experiment.config.grad_accumulation
    parts = batch._replace(
        key=jnp.broadcast_to(batch.key, (num_parts,)),
        **{
            name: value.reshape(num_parts, -1, *value.shape[1:])
            for name, value in batch._asdict().items()
            if name != "key"
        },
    )

    def sums_of(part: Batch) -> Any:
        outputs, _ = apply_model(state.params, state.batch_stats, part, experiment)
        return experiment.objective.sums(outputs)

    total = lax.psum(jax.tree.map(lambda x: x.sum(axis=0), lax.map(sums_of, parts)), AXIS)

    def add_part(carry: tuple[Any, Forward], part: Batch) -> tuple[Any, Any]:
        gradients, before = carry
        there = state.replace(batch_stats=before.batch_stats)  # type: ignore[attr-defined]
        more, forward = batch_gradients(there, part, experiment, total, 1 / num_parts)
        gradients = jax.tree.map(jnp.add, gradients, more)
        forward = forward._replace(
            ce=before.ce + forward.ce,
            metrics=jax.tree.map(jnp.add, before.metrics, forward.metrics),
            squares=jax.tree.map(jnp.add, before.squares, forward.squares),
        )
        return (gradients, forward._replace(values=None)), forward.values

    zeros = jax.tree.map(jnp.zeros_like, state.trainable)
    first = jax.tree.map(lambda x: x[0], parts)
    names = ("ce", *experiment.objective.weights) if zero_perturbations(first, experiment) else ()
    squares = {name: jnp.zeros(()) for name in names}
    metrics = {name: jnp.zeros(()) for name in metrics_of(experiment.config)}
    none = Forward(jnp.zeros(()), metrics, state.batch_stats, None, squares)
    (gradients, forward), values = lax.scan(add_part, (zeros, none), parts)
    # The values are functions of the total, so they are the same in each part.
    return gradients, forward._replace(values=jax.tree.map(lambda x: x[-1], values))


def apply_model(
    params: Any, batch_stats: Any, batch: Batch, experiment: Experiment, perturbations: Any = None
) -> tuple[Outputs, Any]:
    """The forward pass in training mode: outputs that the terms may see, and next statistics."""
    variables = {"params": params, "batch_stats": batch_stats}
    if perturbations:
        variables["perturbations"] = perturbations
    (logits, features), updates = experiment.model.apply(
        variables,
        standardize(batch.images, experiment.config.dataset),
        train=True,
        example_index=batch.example_index,
        mutable=["batch_stats"],
        rngs={"dropout": batch.key},
    )
    tapped = {layer: features[layer] for layer in experiment.config.loss.layers}
    outputs = Outputs(tapped, logits, batch.labels, axis_name=AXIS)
    return outputs, updates.get("batch_stats", batch_stats)


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
