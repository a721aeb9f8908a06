"""Every loss in whatever way JAX is used: meshes of every kind, transforms, strict modes."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gini_jax import losses

K = 5
LOSSES = {
    "gini": losses.gini_loss,
    "kl": losses.kl_loss,
    "entropy": losses.entropy_loss,
    "renyi": losses.renyi_loss,
    "mutual_information": losses.mutual_information_loss,
    "joint": lambda *args, **kwargs: losses.discriminability_loss(*args, **kwargs)[0],
}
AXES = getattr(jax.sharding, "AxisType", None)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(16, 2, 2, 8)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, K, 16))
    soft = jnp.asarray(rng.dirichlet(np.ones(K), 16), jnp.float32)
    return features, {"integers": labels, "one-hot": jnp.eye(K)[labels], "soft": soft}


def value_and_gradient(loss, features, labels, **options):
    classes = K if labels.ndim == 1 else None
    return jax.value_and_grad(partial(loss, num_classes=classes, **options))(features, labels)


def all_losses(features, labels, where=None):
    """Value and gradient of every loss, in one program."""
    return {
        name: value_and_gradient(loss, features, labels, where=where)
        for name, loss in LOSSES.items()
    }


def close(found, expected):
    for ours, one_device in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, one_device, rtol=1e-6, atol=1e-6)


def all_close(found, expected):
    for name in LOSSES:
        close(jax.tree.map(np.float32, found[name]), jax.tree.map(np.float32, expected[name]))


# ------------------------------------------------------------- meshes

SPECS = {
    "batch": (P("a"), P("a")),
    "batch over two axes": (P(("a", "b")), P(("a", "b"))),
    "channels": (P(None, None, None, "b"), P()),
    "both": (P("a", None, None, "b"), P("a")),
    "space": (P("a", "b"), P("a")),
    "replicated": (P(), P()),
}


@pytest.mark.parametrize(
    ("kinds", "kind"),
    [
        ("Explicit Explicit", "integers"),
        pytest.param("Explicit Explicit", "one-hot", marks=pytest.mark.slow),
        pytest.param("Explicit Explicit", "soft", marks=pytest.mark.slow),
        pytest.param("Explicit Auto", "integers", marks=pytest.mark.slow),
        ("Explicit Auto", "soft"),
        ("Auto Auto", "integers"),
    ],
)
@pytest.mark.parametrize("spec", SPECS)
def test_on_a_mesh_the_values_and_gradients_are_those_of_one_device(kind, spec, kinds, batch):
    if not hasattr(jax.sharding, "auto_axes") and "Explicit" in kinds:
        pytest.skip("Explicit axes need jax.sharding.auto_axes, newer than jax 0.6.0")
    features, labels = batch[0], batch[1][kind]
    types = tuple(getattr(AXES, part) for part in kinds.split())
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=types)
    placed = [
        jax.device_put(array, NamedSharding(mesh, one))
        for array, one in zip((features, labels), SPECS[spec], strict=True)
    ]
    step = jax.jit(all_losses)
    expected = jax.device_get(step(features, labels))
    all_close(jax.device_get(step(*placed)), expected)  # the arrays bring the mesh
    if spec == "batch" and kinds == "Explicit Explicit" and hasattr(jax, "set_mesh"):
        with jax.set_mesh(mesh):
            all_close(jax.device_get(step(*placed)), expected)


@pytest.mark.parametrize(
    "name", [x if x == "joint" else pytest.param(x, marks=pytest.mark.slow) for x in LOSSES]
)
def test_on_a_mesh_outside_jit(name, batch):
    if not hasattr(jax, "set_mesh"):
        pytest.skip("needs jax.set_mesh, newer than jax 0.6.0")
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=2 * (AXES.Explicit,))
    features, labels = batch[0], batch[1]["integers"]
    placed = [jax.device_put(x, NamedSharding(mesh, P("a"))) for x in (features, labels)]
    expected = jax.jit(partial(value_and_gradient, LOSSES[name]))(features, labels)
    with jax.set_mesh(mesh):
        close(jax.device_get(value_and_gradient(LOSSES[name], *placed)), expected)


@pytest.mark.parametrize("kind", ["integers", "one-hot", "soft"])
@pytest.mark.parametrize("axis", ["Auto", "Explicit"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_mesh_costs_one_all_reduce_of_the_class_sums(name, axis, kind, batch):
    """Read in the compiled program: `C K` activations and `K` counts, and nothing else."""
    if axis == "Explicit" and not hasattr(jax.sharding, "auto_axes"):
        pytest.skip("Explicit axes need jax.sharding.auto_axes, newer than jax 0.6.0")
    features, labels = batch[0], batch[1][kind]
    mesh = jax.make_mesh((8,), ("a",), axis_types=(getattr(AXES, axis),))
    placed = [jax.device_put(x, NamedSharding(mesh, P("a"))) for x in (features, labels)]
    step = jax.jit(partial(value_and_gradient, LOSSES[name]))
    text = step.lower(*placed).compile().as_text()
    reduces = re.findall(r"= (.*) all-reduce(?:-start)?\(", text)
    shapes = re.findall(r"f32\[([\d,]*)\]", " ".join(reduces))
    numbers = sum(math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes)
    assert numbers == 8 * K + K, reduces
    assert len(reduces) == 1 or jax.__version_info__ < (0, 7)
    for other in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert f" {other}(" not in text and f" {other}-start(" not in text


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("way", ["pmap", "vmap", "shard_map", "shard_map without check_vma"])
def test_mapped_the_gradient_is_that_of_one_device(name, way, batch):
    features, labels = batch[0], batch[1]["integers"]
    scale = jnp.linspace(0.5, 1.5, 8)
    loss = LOSSES[name]

    def of_scale(scale, features, labels, axis_name=None):
        return loss(features * scale, labels, num_classes=K, axis_name=axis_name)

    expected = jax.jit(jax.value_and_grad(of_scale))(scale, features, labels)

    def step(scale, features, labels):
        value, gradient = jax.value_and_grad(of_scale)(scale, features, labels, "i")
        return value, jax.lax.pmean(gradient, "i")

    if way.startswith("shard_map"):
        if not hasattr(jax, "shard_map"):
            pytest.skip("jax.shard_map is newer than jax 0.6.0")
        mesh = Mesh(np.array(jax.devices()[:8]), ("i",))
        options = {"check_vma": False} if "without" in way else {}
        specs = {"in_specs": (P(), P("i"), P("i")), "out_specs": (P(), P())}
        mapped = jax.jit(jax.shard_map(step, mesh=mesh, **specs, **options))
        close(mapped(scale, features, labels), expected)
        return
    parts = [x.reshape(8, 2, *x.shape[1:]) for x in (features, labels)]
    transform = jax.pmap if way == "pmap" else lambda f, **axes: jax.jit(jax.vmap(f, **axes))
    values, gradients = transform(step, in_axes=(None, 0, 0), axis_name="i")(scale, *parts)
    close((values[3], gradients[3]), expected)


# ------------------------------------------------------------- transforms and strict modes


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_of_every_kind(name, batch):
    features, labels = batch[0][:, 0, 0], batch[1]["one-hot"]
    loss = partial(LOSSES[name], labels=labels)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=features.shape), jnp.float32)
    step = 1e-3

    @jax.jit
    def derivatives(features):
        ahead, behind = (jax.grad(loss)(features + s * direction) for s in (step, -step))
        return (
            jax.grad(loss)(features),
            jax.jvp(loss, (features,), (direction,))[1],
            jax.jvp(jax.grad(loss), (features,), (direction,))[1],
            (ahead - behind) / (2 * step),
            jax.grad(jax.checkpoint(loss))(features),
        )

    gradient, forward, second, differences, again = derivatives(features)
    np.testing.assert_allclose(forward, (gradient * direction).sum(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(second, differences, rtol=0.05, atol=1e-3)
    np.testing.assert_allclose(again, gradient, rtol=1e-5, atol=1e-7)


STRICT = {
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_debug_nans": True,
    "jax_enable_x64": True,
}


@pytest.mark.parametrize("mode", STRICT)
@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("float32", "integers"),
        ("bfloat16", "soft"),
        pytest.param("float32", "soft", marks=pytest.mark.slow),
        pytest.param("bfloat16", "integers", marks=pytest.mark.slow),
    ],
)
def test_strict_modes(dtype, kind, mode, batch):
    features, labels = batch[0].astype(dtype), batch[1][kind]
    mask = jnp.arange(16) < 10
    before = getattr(jax.config, mode)
    expected = jax.jit(all_losses)(features, labels, mask)
    try:
        jax.config.update(mode, STRICT[mode])
        found = jax.jit(lambda *batch: all_losses(*batch))(features, labels, mask)
        sums = losses.class_sums(features, labels, num_classes=K)
        _, state = losses.RunningSums.zeros_like(sums).update(sums, 0.5)
        assert np.isfinite(state.weight)
    finally:
        jax.config.update(mode, before)
    all_close(found, expected)


@pytest.mark.parametrize("kind", ["integers", "one-hot", "soft"])
def test_rows_of_weight_0_may_hold_nan(kind, batch):
    features, labels = batch[0], batch[1][kind]
    mask = (jnp.arange(16) < 10).astype(jnp.float32)
    step = jax.jit(all_losses)
    expected = step(features, labels, mask)
    broken = features.at[10:].set(jnp.nan).at[12].set(jnp.inf)
    rows = labels.at[10:].set(jnp.nan) if labels.ndim == 2 else labels
    all_close(step(broken, rows, mask), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_the_feature_axis_may_be_any(name, batch):
    features, labels = batch[0], batch[1]["integers"]
    expected = value_and_gradient(LOSSES[name], features, labels)
    for axis in (1, 2, -2):
        moved = jnp.moveaxis(features, -1, axis)
        value, gradient = value_and_gradient(LOSSES[name], moved, labels, axis=axis)
        close((value, jnp.moveaxis(gradient, axis, -1)), expected)
    with pytest.raises(ValueError, match="axis=0, but features"):
        LOSSES[name](features, labels, num_classes=K, axis=0)


def test_losses_are_there_with_the_package():
    import subprocess
    import sys

    code = "import gini_jax; print(gini_jax.losses.gini_loss.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "gini_loss", done.stderr
