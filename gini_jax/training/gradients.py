"""Gradients of a step: of a batch at once, or in parts that fit into memory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Int32

from gini_jax.data.augment import standardize
from gini_jax.devices import AXIS
from gini_jax.losses.objective import (
    CachedGradients,
    cached_gradients,
    gradient_squares,
    shared_value,
    term_gradients,
)
from gini_jax.losses.term import Outputs
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

    images: Float[Array, "n ..."]
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


def batch_gradients(
    state: TrainState,
    batch: Batch,
    experiment: Experiment,
    total: Any = None,
    fraction: float = 1.0,
    cached: CachedGradients | None = None,
) -> tuple[Any, Forward]:
    """Gradients of this device's part of a batch.

    Args:
        state: the state before the step.
        batch: the part, or a micro-batch of it.
        experiment: the fixed parts of the run.
        total: the sums that the terms are functions of, if they have already been gathered.
        fraction: the micro-batch's fraction of the part; it scales cross-entropy.
        cached: the terms that are no functions of sums, with their gradients at the micro-batch.

    Returns:
        Gradients, to be averaged over devices and summed over micro-batches; and the forward pass.
    """
    config, objective = experiment.config, experiment.objective
    scale = terms_scale(state.step, experiment)
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
            of_terms, values, whole = shared_value(
                objective, outputs, there.terms, scale, total, cached
            )
            if perturbations:
                of_cached = {} if cached is None else cached.of_term
                left = objective if cached is None else objective.without_others()
                of_term = term_gradients(left, outputs, there.terms, whole) | of_cached
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


def terms_scale(step: Int[Array, ""], experiment: Experiment) -> Float[Array, ""]:
    """What the terms' weights are multiplied by in a step: 0 before they start."""
    config = experiment.config.loss
    start = (config.start_epoch - 1) * experiment.steps_per_epoch
    ramp = config.ramp_epochs * experiment.steps_per_epoch
    if ramp:
        return jnp.clip((step + 1 - start) / ramp, 0.0, 1.0)
    return jnp.where(step >= start, 1.0, 0.0)


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

    There are two passes over the parts. The first gathers the sums of all parts and, if some terms
    are no functions of sums, the outputs, and takes these terms of the whole batch (arXiv
    2101.06983). The second gathers the gradients. So the terms are exactly the whole batch's.
    Batch normalisation sees one part at a time, over all devices.
    """
    num_parts = experiment.config.grad_accumulation
    parts = _in_parts(batch, num_parts)
    objective = experiment.objective

    def first_pass(part: Batch) -> tuple[Any, Any]:
        outputs, _ = apply_model(state.params, state.batch_stats, part, experiment)
        kept = (outputs.features, outputs.logits) if objective.other_terms else ()
        return objective.sums(outputs), kept

    sums, kept = lax.map(first_pass, parts)
    total = lax.psum(jax.tree.map(lambda x: x.sum(axis=0), sums), AXIS)
    cached, of_parts = None, {}
    if objective.other_terms:
        features, logits = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept)
        whole = Outputs(features, logits, batch.labels, axis_name=AXIS)
        scale = terms_scale(state.step, experiment)
        cached = cached_gradients(objective, whole, state.terms, scale)
        of_parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), cached.of_term)

    def add_part(carry: tuple[Any, Forward], given: tuple[Batch, Any]) -> tuple[Any, Any]:
        gradients, before = carry
        part, of_part = given
        there = state.replace(batch_stats=before.batch_stats)  # type: ignore[attr-defined]
        own = None if cached is None else cached._replace(of_term=of_part)
        more, forward = batch_gradients(there, part, experiment, total, 1 / num_parts, own)
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
    (gradients, forward), values = lax.scan(add_part, (zeros, none), (parts, of_parts))
    if cached is not None and cached.of_params is not None:
        of_terms = jax.tree.map(jnp.add, gradients["terms"], cached.of_params)
        gradients = gradients | {"terms": of_terms}
    # The values are functions of the total, so they are the same in each part.
    return gradients, forward._replace(values=jax.tree.map(lambda x: x[-1], values))


def _in_parts(batch: Batch, num_parts: int) -> Batch:
    """`[num_parts, n / num_parts, ...]` of each array; all parts have the batch's key."""
    divided = {
        name: value.reshape(num_parts, -1, *value.shape[1:])
        for name, value in batch._asdict().items()
        if name != "key"
    }
    return batch._replace(key=jnp.broadcast_to(batch.key, (num_parts,)), **divided)


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
