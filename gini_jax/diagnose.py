"""Where a NaN came from: the step that made it, once more, a module at a time."""

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gini_jax.data import epoch_order
from gini_jax.parallel import replicate
from gini_jax.step import augmented_batch

if TYPE_CHECKING:
    from gini_jax.run import Run


def first_nan(run: "Run", step: int) -> str:
    """Runs from the newest checkpoint to before a step, then its forward pass, unmapped.

    The whole batch goes through in one part, whatever `config.grad_accumulation` says.

    Args:
        run: the run whose loss became NaN or infinite.
        step: the step that gave it, counted from 1.

    Returns:
        A sentence that names the first module whose output is not finite though its input is; or
        the parameters that were not finite before the step; or that the forward pass is finite.
    """
    run = type(run)(run.experiment, run.dataset, run.workdir, run.devices)
    run.restore_newest()
    run.config.steps_per_call = 1
    start = int(run.state.step)
    run.state = replicate(run.state, run.devices)
    for done in range(start, step - 1):
        run.advance(done, 1)
    state = jax.device_get(run.state)
    bad = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.variables)
        if not _finite(leaf)
    ]
    if bad:
        return f"Before step {step}, after {step - 1}, these were not finite: {', '.join(bad[:5])}."
    train = run.dataset.splits["train"]
    epoch, place = divmod(step - 1, run.steps)
    order = epoch_order(run.config.seed, epoch, len(train.labels), run.config.batch_size)
    batch = {"image": train.images[order[place]], "label": train.labels[order[place]]}
    images, _, dropout_key = augmented_batch(state, batch, run.experiment)
    found: list[str] = []

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == "__call__" and not found and not _finite(output):
            found.append("/".join(context.module.path) or type(context.module).__name__)
        return output

    model = run.experiment.model.clone(axis_name=None)
    with nn.intercept_methods(watch):
        model.apply(
            state.variables,
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
    if found:
        return f"The first module whose output is not finite in step {step} is {found[0]}."
    return f"The forward pass of step {step} is finite: its loss or its gradient is not."


def _finite(tree: Any) -> bool:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)
