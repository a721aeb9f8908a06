"""The losses beside the paper's over devices, micro-batches and chunks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gini_jax import losses
from gini_jax.losses.directions import direction_products, direction_sums
from tests.helpers import baselines
from tests.helpers.baselines import (
    COMPARATOR,
    LOSSES,
    MIX,
    PAIRS,
    PROJECTION,
    PROXIES,
    C,
    K,
    close,
    own_losses,
    value_and_gradient,
)


@pytest.fixture(scope="module", name="batch")
def _batch():
    return baselines.batch()


@pytest.mark.parametrize(
    ("way", "devices"),
    [
        ("pmap", 2),
        pytest.param("shard_map", 8, marks=pytest.mark.slow),
        pytest.param("pmap", 8, marks=pytest.mark.slow),
        pytest.param("vmap", 8, marks=pytest.mark.slow),
        pytest.param("shard_map without check_vma", 2, marks=pytest.mark.slow),
    ],
)
def test_parts_on_several_devices_equal_the_whole(way, devices, batch):
    if way.startswith("shard_map") and not hasattr(jax, "shard_map"):
        pytest.skip("jax.shard_map is newer than jax 0.6.0")
    features, labels = batch
    scale = jnp.linspace(0.5, 1.5, C)

    def step(scale, features, labels, axis_name=None):
        """All values, and their gradients by `scale`, in one backward pass."""
        options = {} if axis_name is None else {"axis_name": axis_name}

        def values(scale):
            x = jnp.tanh(features * scale)
            return jnp.stack([f(x, labels, num_classes=K, **options) for f in LOSSES.values()])

        gradients = jax.jacrev(values)(scale)
        if axis_name is not None:
            gradients = jax.lax.pmean(gradients, axis_name)
        return values(scale), gradients

    expected = jax.jit(step)(scale, features, labels)
    mapped = partial(step, axis_name="i")
    if way.startswith("shard_map"):
        mesh = Mesh(np.array(jax.devices()[:devices]), ("i",))
        options = {"check_vma": False} if "without" in way else {}
        specs = {"in_specs": (P(), P("i"), P("i")), "out_specs": (P(), P())}
        found = jax.jit(jax.shard_map(mapped, mesh=mesh, **specs, **options))(
            scale, features, labels
        )
    else:
        parts = [x.reshape(devices, -1, *x.shape[1:]) for x in (features, labels)]
        transform = jax.pmap if way == "pmap" else lambda f, **axes: jax.jit(jax.vmap(f, **axes))
        found = transform(mapped, in_axes=(None, 0, 0), axis_name="i")(scale, *parts)
        found = jax.tree.map(lambda x: x[-1], found)
    close(found, expected, rtol=5e-6, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", ["Explicit Explicit", "Auto Auto", "Explicit Auto"])
def test_on_a_mesh_the_values_and_gradients_are_those_of_one_device(kinds, batch):
    if not hasattr(jax.sharding, "auto_axes"):
        pytest.skip("Explicit axes need jax.sharding.auto_axes, newer than jax 0.6.0")
    arrays = batch[0], jnp.tanh(batch[0].mean(axis=(1, 2)) @ MIX), batch[1]
    types = tuple(getattr(jax.sharding.AxisType, kind) for kind in kinds.split())
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=types)
    placed = [jax.device_put(x, NamedSharding(mesh, P(("a", "b")))) for x in arrays]
    step = jax.jit(own_losses)
    close(step(*placed), step(*arrays), rtol=5e-6, atol=2e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_collectives_of_a_step(name, batch):
    """Pairs: one all-gather, of the bits of the features and of what lies beside them, so that
    integers stay integers. Sums: one all-reduce."""
    features, labels = batch[0].mean(axis=(1, 2)), batch[1]

    def loss(features, labels):
        return LOSSES[name](features, labels, num_classes=K, axis_name="i")

    mapped = jax.pmap(loss, axis_name="i")
    parts = features.reshape(8, 2, C), labels.reshape(8, 2)
    text = mapped.lower(*parts).compile().as_text()
    gathers = text.count(" all-gather(") + text.count(" all-gather-start(")
    assert gathers == (1 if name in PAIRS else 0)
    if name in PAIRS:
        rows = 2 if name in ("nt-xent", "simclr") else 1  # two views of each image
        assert f"u32[{16 * rows},{C + 3}]" in text or f"u32[8,{2 * rows},{C + 3}]" in text
    reduces = text.count(" all-reduce(") + text.count(" all-reduce-start(")
    # Relation: prototypes, then the mean error; proxy anchor: largest exponents, then sums;
    # monosemantic: extremes, whose they are, then sums.
    several = {"relation": 2, "proxy anchor": 2}
    several |= dict.fromkeys(("monosemantic", "monosemantic by label"), 3)
    assert reduces == several.get(name, 1)


LEARNED = {
    "proxy anchor": (losses.proxy_anchor_loss, PROXIES),
    "relation": (partial(losses.relation_loss, num_classes=K), COMPARATOR),
    "relation triplet": (losses.relation_triplet_loss, COMPARATOR),
    "simclr": (losses.simclr_loss, PROJECTION),
}


@pytest.mark.parametrize("name", LEARNED)
def test_gradients_of_learned_parameters_are_those_of_one_device(name, batch):
    """Under pmap after a pmean, and on an Explicit mesh; a device holds both views of an image."""
    loss, learned = LEARNED[name]
    features, labels = batch[0].mean(axis=(1, 2)), batch[1]
    expected = jax.jit(jax.value_and_grad(loss, 2))(features, labels, learned)

    def part(x, y):
        found = jax.value_and_grad(partial(loss, axis_name="i"), 2)(x, y, learned)
        return jax.lax.pmean(found, "i")

    parts = features.reshape(4, 4, C)
    if name == "simclr":
        parts = features.reshape(2, 4, 2, C).swapaxes(0, 1).reshape(4, 4, C)
    found = jax.pmap(part, axis_name="i")(parts, labels.reshape(4, 4))
    close(jax.tree.map(lambda x: x[0], found), expected, rtol=5e-6, atol=2e-6)
    if hasattr(jax.sharding, "auto_axes"):
        mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
        placed = [jax.device_put(x, NamedSharding(mesh, P("i"))) for x in (features, labels)]
        found = jax.jit(jax.value_and_grad(loss, 2))(*placed, learned)
        close(found, expected, rtol=5e-6, atol=2e-6)


# ------------------------------------------------------------- micro-batches and chunks


SUMS = {
    "center": losses.feature_moments,
    "fisher": losses.feature_moments,
    "island": losses.feature_moments,
    "vcreg": losses.second_moments,
    "decorrelation": losses.second_moments,
    "opl": direction_sums,
    "rate reduction": direction_products,
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_accumulate_exactly_and_blend_with_their_history(name, batch):
    features, labels = batch[0].mean(axis=(1, 2)), batch[1]
    loss, scale = LOSSES[name], jnp.linspace(0.5, 1.5, C)

    def moments(scale, part):
        return SUMS[name](jnp.tanh(features[part] * scale), labels[part], num_classes=K)

    parts = [slice(0, 6), slice(6, 16)]
    total = moments(scale, parts[0]) + moments(scale, parts[1])
    value, linearized = losses.linearize_at(loss, total)
    gradients = [jax.jit(jax.grad(lambda s, p=p: linearized(moments(s, p))))(scale) for p in parts]
    whole = jax.jit(
        jax.value_and_grad(lambda s: loss(jnp.tanh(features * s), labels, num_classes=K))
    )
    expected = whole(scale)
    close((value, sum(gradients)), expected, rtol=1e-5, atol=1e-6)
    blended, _ = losses.RunningSums.zeros_like(total).update(total, 0.9)
    np.testing.assert_allclose(loss(blended), value, rtol=1e-5)


@pytest.mark.slow
def test_chunks_change_nothing_but_memory(batch):
    names = [name for name in PAIRS if name not in ("simclr", "relation triplet")]

    def step(features, labels, chunk_size=None):
        return {n: value_and_gradient(n, features, labels, chunk_size=chunk_size) for n in names}

    features, labels = batch[0].mean(axis=(1, 2)), batch[1]
    expected = jax.jit(step)(features, labels)
    for size in (5, 100):
        found = jax.jit(partial(step, chunk_size=size))(features, labels)
        close(found, expected, rtol=1e-5, atol=1e-6)


def test_chunks_bound_the_memory_of_a_gradient():
    x, labels = jnp.zeros((2048, 16)), jnp.zeros(2048, int)

    def temporaries(chunk_size):
        loss = partial(losses.supcon_loss, labels=labels, chunk_size=chunk_size)
        return jax.jit(jax.grad(loss)).lower(x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(64) < temporaries(None) / 8
