"""Losses of two towers: their values, on devices, in chunks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gini_jax import losses


def close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b)


def towers():
    a, b = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 6)), jnp.float32)
    return a, b


def numpy_towers(a, b, scale, bias=None, w=None):
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    w = np.ones(len(a)) if w is None else np.asarray(w, np.float64)
    a, b, w = a[w > 0], b[w > 0], w[w > 0]
    s = scale * a @ b.T
    if bias is None:
        of_rows = np.log(np.exp(s).sum(axis=1)) - np.diag(s)
        of_columns = np.log(np.exp(s).sum(axis=0)) - np.diag(s)
        return (w * (of_rows + of_columns) / 2).sum() / w.sum()
    z = 2 * np.eye(len(a)) - 1
    each = np.log1p(np.exp(-z * (s + bias))).sum(axis=1)
    return (w * each).sum() / w.sum()


TOWERS = {
    "clip": (losses.clip_loss, (7.0,)),
    "siglip": (losses.siglip_loss, (7.0, -2.0)),
}


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("where", [None, jnp.array([1, 1, 0, 2, 1, 0, 1, 1.0])])
def test_towers_equal_numpy_and_do_not_depend_on_the_devices(name, where):
    loss, rest = TOWERS[name]
    a, b = towers()
    if where is not None:
        a = jnp.where(where[:, None] > 0, a, jnp.nan)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda a, b, *rest: loss(a, b, *rest, where=where), (0, 1, 2))
    )(a, b, *rest)
    close(value, numpy_towers(a, b, *rest, w=where))
    assert all(np.isfinite(x).all() for x in gradient)
    w = jnp.ones(8) if where is None else where

    def own(a, b, w):
        return jax.value_and_grad(lambda a, b: loss(a, b, *rest, where=w, axis_name="b"), (0, 1))(
            a, b
        )

    for n in (2, 8):
        split = [x.reshape(n, 8 // n, *x.shape[1:]) for x in (a, b, w)]
        found, of = jax.pmap(own, axis_name="b", devices=jax.devices()[:n])(*split)
        close(found, np.full(n, value), rtol=1e-5)
        mesh = Mesh(np.array(jax.devices()[:n]), ("b",))
        for weights in (w, None) if where is None else (w,):
            specs = (P("b"), P("b"), P() if weights is None else P("b"))
            sharded = jax.shard_map(
                lambda a, b, w: loss(a, b, *rest, where=w, axis_name="b"),
                mesh=mesh,
                in_specs=specs,
                out_specs=P(),
            )
            step = jax.jit(jax.value_and_grad(sharded, (0, 1)))
            close(step(a, b, weights), (value, gradient[:2]), atol=1e-6)
        placed = [jax.device_put(x, NamedSharding(mesh, P("b"))) for x in (a, b)]
        step = jax.jit(jax.value_and_grad(lambda a, b: loss(a, b, *rest, where=where), (0, 1)))
        close(step(*placed), (value, gradient[:2]), atol=1e-6)
        for ours, expected in zip(of, gradient[:2], strict=True):
            close(ours.reshape(8, 6) / n, expected, atol=1e-6)


def test_siglip_passes_rows_around_and_gathers_nothing():
    a, b = towers()
    split = [x.reshape(4, 2, 6) for x in (a, b)]
    step = jax.pmap(
        jax.grad(lambda a, b: losses.siglip_loss(a, b, 5.0, -1.0, axis_name="b")),
        axis_name="b",
        devices=jax.devices()[:4],
    )
    text = step.lower(*split).as_text()
    assert "collective_permute" in text and "all_gather" not in text


@pytest.mark.parametrize("name", TOWERS)
def test_rows_in_chunks_give_the_same(name):
    """3 does not divide the 8 rows, nor the 4 of a device."""
    loss, rest = TOWERS[name]
    a, b = towers()
    whole, chunked = (
        jax.jit(jax.value_and_grad(partial(loss, chunk_size=size), (0, 1, 2)))(a, b, *rest)
        for size in (None, 3)
    )
    close(chunked, whole)
    own = jax.pmap(
        lambda a, b: loss(a, b, *rest, chunk_size=3, axis_name="b"),
        axis_name="b",
        devices=jax.devices()[:2],
    )
    close(own(a.reshape(2, 4, 6), b.reshape(2, 4, 6)), [whole[0]] * 2)
    with pytest.raises(ValueError, match="chunk_size=0"):
        loss(a, b, *rest, chunk_size=0)
