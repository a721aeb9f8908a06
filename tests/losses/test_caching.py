"""Gradient caching: the gradients of the whole batch, with the memory of a micro-batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gini_jax import losses

X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 5)), jnp.float32)
Y = jnp.arange(16) * 7 % 4


def close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b)


def network(params, x, key=None):
    hidden = jnp.tanh(x @ params["a"])
    if key is not None:
        hidden = hidden * jax.random.bernoulli(key, 0.5, hidden.shape)
    return hidden @ params["b"]


def params_of(dtype=jnp.float32):
    a, b = jax.random.split(jax.random.key(1))
    return {
        "a": jax.random.normal(a, (5, 7), dtype),
        "b": jax.random.normal(b, (7, 3), dtype),
    }


@pytest.mark.parametrize("parts", [1, 2, 8, 16])
def test_caching_is_an_identity_in_float64(parts):
    with jax.enable_x64(True):
        params, x = params_of(jnp.float64), jnp.asarray(X, jnp.float64)
        loss = partial(losses.supcon_loss, temperature=0.5)
        whole = jax.jit(jax.value_and_grad(lambda p: loss(network(p, x), Y)))(params)
        found = jax.jit(losses.cached_value_and_grad(loss, network, parts))(params, x, Y)
        close(found, whole, rtol=1e-12, atol=1e-12)


def test_caching_two_towers_with_a_parameter_of_the_loss():
    params, rest = params_of(), jnp.array(3.0)
    both = lambda params, inputs: tuple(network(params, x) for x in inputs)  # noqa: E731
    loss = lambda embeddings, scale: losses.clip_loss(*embeddings, scale)  # noqa: E731
    inputs = (X, jnp.flip(X, axis=1))
    expected = jax.jit(jax.value_and_grad(lambda p, s: loss(both(p, inputs), s), (0, 1)))(
        params, rest
    )
    cached = losses.cached_value_and_grad(loss, both, 4, rest_argnums=(0,))
    close(jax.jit(cached)(params, inputs, rest), expected)


def test_caching_repeats_dropout_and_carries_a_state():
    params, key = params_of(), jax.random.key(5)
    cached = losses.cached_value_and_grad(losses.supcon_loss, network, 4)
    value, gradient = jax.jit(cached)(params, X, Y, key=key)

    def whole(params):
        keys = jax.random.split(key, 4)
        parts = [network(params, X[m::4], keys[m]) for m in range(4)]
        return losses.supcon_loss(jnp.stack(parts, axis=1).reshape(16, 3), Y)

    close((value, gradient), jax.jit(jax.value_and_grad(whole))(params))

    def counting(params, x, state):
        return network(params, x) * (1 + state), state + x.mean()

    cached = losses.cached_value_and_grad(losses.supcon_loss, counting, 4)
    value, gradient, state = jax.jit(cached)(params, X, Y, state=jnp.zeros(()))
    states = np.cumsum([0, *(float(X[m::4].mean()) for m in range(4))])
    close(state, states[-1])

    def with_states(params):
        parts = [network(params, X[m::4]) * (1 + states[m]) for m in range(4)]
        return losses.supcon_loss(jnp.stack(parts, axis=1).reshape(16, 3), Y)

    close((value, gradient), jax.jit(jax.value_and_grad(with_states))(params), rtol=1e-4)


@pytest.mark.parametrize("devices", [2, 4])
def test_caching_is_exact_in_every_way_of_sharding(devices):
    params, there = params_of(), jax.devices()[:devices]
    expected = jax.jit(jax.value_and_grad(lambda p: losses.supcon_loss(network(p, X), Y)))(params)
    cached = losses.cached_value_and_grad
    own = cached(partial(losses.supcon_loss, axis_name="b"), network, 2)

    def step(params, x, y):
        value, gradient = own(params, x, y)
        return jax.lax.pmean((value, gradient), "b")

    split = [a.reshape(devices, -1, *a.shape[1:]) for a in (X, Y)]
    mapped = jax.pmap(step, axis_name="b", in_axes=(None, 0, 0), devices=there)(params, *split)
    close(jax.tree.map(lambda x: x[0], mapped), expected)
    mesh = Mesh(np.array(there), ("b",))
    sharded = jax.shard_map(step, mesh=mesh, in_specs=(P(), P("b"), P("b")), out_specs=P())
    close(jax.jit(sharded)(params, X, Y), expected)
    x, y = (jax.device_put(a, NamedSharding(mesh, P("b"))) for a in (X, Y))
    close(jax.jit(cached(losses.supcon_loss, network, 2))(params, x, y), expected)


def test_caching_refuses_parts_that_do_not_divide_the_examples():
    with pytest.raises(ValueError, match="micro_batches=5 does not divide the 16 examples; 4 does"):
        losses.cached_value_and_grad(losses.supcon_loss, network, 5)(params_of(), X, Y)
    with pytest.raises(ValueError, match="positive integer"):
        losses.cached_value_and_grad(losses.supcon_loss, network, 0)


COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")


def collectives_of(step, *arguments):
    """How often each collective stands in the program of a step on eight devices."""
    mesh, specs = Mesh(np.array(jax.devices()), ("b",)), (P(), P("b"), P("b"))
    sharded = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P()))
    text = sharded.lower(*arguments).compile().as_text()
    counts = {x: text.count(f" {x}(") + text.count(f" {x}-start(") for x in COLLECTIVES}
    return {x: n for x, n in counts.items() if n}


@pytest.fixture
def optimised():
    """The compiler's own passes, which combine collectives: tests compile without most of them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def test_caching_needs_no_further_collective(optimised):
    """Pairs: a gather, which the gradient reverses, and a sum; then the sum of the gradients."""
    loss, params = partial(losses.supcon_loss, axis_name="b"), params_of()

    def direct(params, x, y):
        return jax.value_and_grad(lambda params: loss(network(params, x), y))(params)

    found = collectives_of(losses.cached_value_and_grad(loss, network, 2), params, X, Y)
    assert found == collectives_of(direct, params, X, Y)
    assert found == {"all-gather": 1, "all-reduce": 2, "reduce-scatter": 1}


def test_the_ring_gathers_nothing(optimised):
    """SigLIP: rows pass around, their gradients pass back."""

    def step(params, x, y):
        def loss(params):
            z = network(params, x)
            return losses.siglip_loss(z, jnp.flip(z, 1), 5.0, -2.0, axis_name="b")

        return jax.grad(loss)(params)

    found = collectives_of(step, params_of(), X, Y)
    assert set(found) == {"all-reduce", "collective-permute"} and found["all-reduce"] <= 2
