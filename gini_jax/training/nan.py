"""Finds the origin of a NaN: repeats the step that produced it, one module at a time."""

from typing import Any

import flax.linen as nn
import jax

from gini_jax.data.augment import standardize
from gini_jax.data.sampling import epoch_order
from gini_jax.data.source import Split
from gini_jax.devices import replicate
from gini_jax.training.state import TrainState, not_finite
from gini_jax.training.step import augmented_batch
from gini_jax.training.stepper import Stepper


def first_nan(stepper: Stepper, state: TrainState, step: int) -> str:
    """Trains from a state up to a step, then runs the step's forward pass on one device.

    It runs the whole batch at once, even if `config.grad_accumulation` is above 1.

    Args:
        stepper: the stepper of the run whose loss became NaN or infinite.
        state: an earlier state of the run, on the host.
        step: the step that gave the NaN, counted from 1.

    Returns:
        A sentence that names the first module whose output is not finite though its input is; or
        the parameters that were not finite before the step; or that the forward pass is finite.
    """
    config = stepper.experiment.config.copy_and_resolve_references()
    config.steps_per_call = 1
    experiment = stepper.experiment._replace(config=config)
    on_devices = replicate(state, stepper.devices)
    again = Stepper(experiment, stepper.dataset, stepper.devices)
    for done in range(int(state.step), step - 1):
        on_devices, _ = again(on_devices, done, 1)
    state = jax.device_get(on_devices)
    bad = [path for path, is_bad in not_finite(state.variables).items() if is_bad]
    if bad:
        return f"Already before step {step}, these were not finite: {', '.join(bad[:5])}."
    train = stepper.dataset.splits["train"]
    epoch, place = divmod(step - 1, experiment.steps_per_epoch)
    order = epoch_order(config, epoch, train.labels)[place]
    batch = augmented_batch(state, Split(train.images[order], train.labels[order]), experiment)
    found: list[str] = []
    remat: Any = {"remat": False} if hasattr(experiment.model, "remat") else {}
    model = experiment.model.clone(axis_name=None, **remat)  # values, not tracers, are watched

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == "__call__" and not found and not _finite(output):
            found.append("/".join(context.module.path) or type(context.module).__name__)
        return output

    with nn.intercept_methods(watch):
        model.apply(
            state.variables,
            standardize(batch.images, config.dataset),
            train=True,
            example_index=batch.example_index,
            mutable=["batch_stats"],
            rngs={"dropout": batch.key},
        )
    if found:
        return f"The first module whose output is not finite in step {step} is {found[0]}."
    return f"The forward pass of step {step} is finite; the loss or the gradient is not."


def _finite(tree: Any) -> bool:
    return not any(not_finite(tree).values())
