"""Gradients of any loss over a batch whose network does not fit into memory."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.mapped import mapped_axes, varying_like


def cached_value_and_grad(
    loss: Callable[..., jax.Array],
    network: Callable[..., Any],
    micro_batches: int,
    *,
    rest_argnums: Sequence[int] = (),
) -> Callable[..., Any]:
    """Value and gradient of a loss of all embeddings, with the network's memory of a micro-batch.

    A first pass embeds the micro-batches one after the other and keeps nothing but the embeddings.
    The loss and its gradient with respect to the embeddings are those of the whole batch. A second
    pass embeds each micro-batch again, and pulls its part of that gradient back to the parameters.
    So value and gradients are those of `jax.value_and_grad` over the whole batch, at the price of
    one more forward pass, for a loss that is not a sum over examples too. `linearize_at` does the
    same for functions of class sums, and keeps no embeddings.

    Args:
        loss: `loss(embeddings, *rest)` to a scalar. Over several devices it is the loss of the
            global batch: under pmap, vmap or shard_map it takes `axis_name` itself.
        network: `network(params, inputs)` to embeddings: an array, or a pytree of arrays, whose
            first axis is that of the examples. Examples may depend on each other within a micro-
            batch alone, as in batch normalisation, whose statistics are then those of the micro-
            batches.
        micro_batches: how many; they divide the examples. Micro-batch `m` holds the examples `m`,
            `m + micro_batches`, and so on, so that an array that is sharded along its examples
            stays where it is.
        rest_argnums: which of `*rest` to differentiate too, such as the parameters of the loss.

    Returns:
        A function `(params, inputs, *rest, key=None, state=None)`. `inputs` is an array or a pytree
        of arrays, as of two towers, whose first axis is that of the examples. It returns the value
        and the gradients with respect to `params`; with `rest_argnums`, a tuple of these and of the
        gradients with respect to those arguments.

        With `key`, each micro-batch has a random key of its own, `network(params, inputs,
        key=key)`, the same in both passes. With `state`, such as batch statistics, it is
        `network(params, inputs, state)`, which also returns the next state: the state advances from
        micro-batch to micro-batch in the first pass, the second one sees the same states, and the
        last state is returned after the gradients.

    Raises:
        ValueError: the number of micro-batches is not a positive integer, or does not divide the
            examples.

    References:
        Gao, Zhang, Han, Callan, "Scaling deep contrastive learning batch size under memory limited
        setup", 2021 (arXiv 2101.06983), section 3.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from gini_jax.losses import supcon_loss
        >>> network = lambda params, x: jnp.tanh(x @ params)
        >>> params, labels = jax.random.normal(jax.random.key(0), (3, 2)), jnp.arange(8) % 2
        >>> x = jax.random.normal(jax.random.key(1), (8, 3))
        >>> value, gradient = cached_value_and_grad(supcon_loss, network, 4)(params, x, labels)
        >>> whole = jax.grad(lambda params: supcon_loss(network(params, x), labels))(params)
        >>> bool(jnp.allclose(gradient, whole, atol=1e-6))
        True
    """
    if not isinstance(micro_batches, int) or micro_batches < 1:
        raise ValueError(f"micro_batches={micro_batches!r}; it must be a positive integer")

    def value_and_grad(
        params: Any, inputs: Any, *rest: Any, key: jax.Array | None = None, state: Any = None
    ) -> Any:
        parts = jax.tree.map(lambda x: _divided(x, micro_batches), inputs)
        keys = None if key is None else jax.random.split(key, micro_batches)

        def embedded(params: Any, state: Any, part: Any, key: Any) -> tuple[Any, Any]:
            own_key = {} if key is None else {"key": key}
            if state is None:
                return network(params, part, **own_key), None
            found: tuple[Any, Any] = network(params, part, state, **own_key)
            return found

        def first_pass(state: Any, given: Any) -> tuple[Any, Any]:
            embeddings, following = embedded(lax.stop_gradient(params), state, *given)
            return following, (embeddings, state)

        last, (embeddings, states) = lax.scan(first_pass, state, (parts, keys))
        whole = jax.tree.map(_joined, embeddings)
        arguments = (0, *(1 + i for i in rest_argnums))
        value, (cotangents, *of_rest) = jax.value_and_grad(loss, arguments)(whole, *rest)
        pulled = jax.tree.map(lambda x: _divided(x, micro_batches), cotangents)

        def second_pass(params: Any) -> jax.Array:
            @jax.checkpoint
            def product(given: Any) -> jax.Array:
                state, part, key, cotangent = given
                found = embedded(params, state, part, key)[0]
                parts = jax.tree.map(lambda c, x: (c * x).sum(), cotangent, found)
                return jax.tree.reduce(jnp.add, parts)

            return lax.map(product, (states, parts, keys, pulled)).sum()

        gradients = jax.grad(second_pass)(varying_like(params, inputs))
        gradients = _summed_like(gradients, params)
        found = (gradients, *of_rest) if of_rest else gradients
        return (value, found) if state is None else (value, found, last)

    return value_and_grad


def _divided(x: jax.Array, count: int) -> jax.Array:
    """`[N, ...]` as `[count, N / count, ...]`; part `m` holds the rows `m`, `m + count`, ..."""
    if x.shape[0] % count:
        near = [n for n in range(1, x.shape[0] + 1) if x.shape[0] % n == 0]
        fitting = min(near, key=lambda n: abs(math.log(n / count)))
        raise ValueError(
            f"micro_batches={count} does not divide the {x.shape[0]} examples; {fitting} does"
        )
    return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)


def _joined(parts: jax.Array) -> jax.Array:
    """The inverse of `_divided`."""
    whole = parts.swapaxes(0, 1)
    return whole.reshape(-1, *whole.shape[2:])


def _summed_like(gradients: Any, params: Any) -> Any:
    """Gradients of replicated parameters, summed over the devices, as shard_map does it."""

    def summed(gradient: jax.Array, x: jax.Array) -> jax.Array:
        extra = tuple(mapped_axes(gradient) - mapped_axes(x))
        return lax.psum(gradient, extra) if extra else gradient

    return jax.tree.map(summed, gradients, params)
