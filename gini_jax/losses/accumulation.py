"""Class sums beyond one batch: exact gradient accumulation, and a running average."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def linearize_at(
    loss_of_sums: Callable[[Any], Any], total: Any, *, has_aux: bool = False
) -> tuple[Any, Callable[[Any], jax.Array]]:
    """Exact gradient accumulation of a loss that is not a sum over examples.

    Let the class sums of a batch be `s(theta) = sum_b s_b(theta)` over micro-batches `b`, and the
    loss `f(s)`. By the chain rule its gradient is `sum_b <f'(s), d s_b / d theta>`, where `f'(s)`
    is one small array that does not depend on `b`. So a first pass over the micro-batches gathers
    `total` without gradients; this function takes `f'(s)` there; and a second pass differentiates
    the inner product `<f'(s), s_b(theta)>` of each micro-batch. Memory is that of one micro-batch,
    at the price of a second forward pass. Batch normalisation sees micro-batches in both passes.

    The parts of several devices are micro-batches too. With `total` summed over the devices by
    `psum`, each device differentiates the product with its own sums, and the gradients add over
    the devices: the backward pass needs no collective of its own.

    Args:
        loss_of_sums: from a pytree of `ClassSums` to a scalar.
        total: the sums of the whole batch, in a pytree of the same form.
        has_aux: whether `loss_of_sums` returns a pair `(scalar, more)`, as in `jax.grad`.

    Returns:
        What `loss_of_sums` gives for the whole batch, and a function from the pytree of one
        micro-batch's sums to the scalar to differentiate. The gradients of all micro-batches add
        up to the gradient of the whole batch.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from gini_jax.losses import class_sums, gini_loss
        >>> x, y = jnp.arange(8.0).reshape(4, 2), jnp.eye(2)[jnp.array([0, 1, 1, 0])]
        >>> sums = lambda scale, x, y: class_sums(x * scale + 1.0, y)
        >>> total = sums(2.0, x[:2], y[:2]) + sums(2.0, x[2:], y[2:])
        >>> loss, linearized = linearize_at(gini_loss, total)
        >>> part = jax.jit(jax.grad(lambda scale, x, y: linearized(sums(scale, x, y))))
        >>> parts = part(2.0, x[:2], y[:2]) + part(2.0, x[2:], y[2:])
        >>> bool(jnp.isclose(parts, jax.grad(lambda s: gini_loss(x * s + 1.0, y))(2.0)))
        True
    """
    total = lax.stop_gradient(total)
    value, cotangent = jax.value_and_grad(loss_of_sums, has_aux=has_aux)(total)

    def linearized(sums: Any) -> jax.Array:
        products = jax.tree.map(lambda ct, part: (ct * part).sum(), cotangent, sums)
        return jax.tree.reduce(jnp.add, products, jnp.zeros(()))

    return value, linearized


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RunningSums:
    """Exponential moving average of class sums, for batches that hold few examples per class.

    `h[t] = d h[t-1] + (1 - d) s[t]`, corrected for its zero start: `h[t] / (1 - d^t)`.

    The history carries no gradient. That of the batch's own sums is scaled by their share of the
    blend, `(1 - d) / (1 - d^t)`; a larger term weight can make up for it.

    Attributes:
        average: the biased average `h`, zero at the start: `ClassSums`, or a pytree of them.
        weight: scalar, `1 - d^t`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from gini_jax.losses import class_sums
        >>> batch = class_sums(jnp.ones((4, 3)), jnp.array([0, 1, 1, 0]), num_classes=2)
        >>> blended, state = RunningSums.zeros_like(batch).update(batch, 0.9)
        >>> print(f"{blended.mass[0]:.3f}")  # bias-corrected: after one batch, that batch
        2.000
    """

    average: Any
    weight: jax.Array

    @staticmethod
    def zeros_like(sums: Any) -> "RunningSums":
        """The state before the first batch.

        Args:
            sums: what will be averaged, or its shapes (`jax.eval_shape`).
        """
        return RunningSums(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums), jnp.zeros(()))

    def update(self, batch: Any, decay: float | jax.Array) -> tuple[Any, "RunningSums"]:
        """The blend of history and batch, bias-corrected, and the next state.

        Args:
            batch: the batch's sums, already summed over devices.
            decay: `d` in `[0, 1)`; 0 uses only the batch.

        Raises:
            ValueError: the decay is out of its range.
        """
        if isinstance(decay, (int, float)) and not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must lie in [0, 1)")
        history = lax.stop_gradient(self)
        average = jax.tree.map(lambda h, s: decay * h + (1 - decay) * s, history.average, batch)
        weight = decay * history.weight + (1 - decay)
        blended = jax.tree.map(lambda h: h / weight, average)
        return blended, lax.stop_gradient(RunningSums(average, weight))
