"""The CPU's own convolutions equal XLA's, in value and gradients, in whatever way they are used."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from gini_jax.models import convolution, create_model
from gini_jax.models.convolution import conv_general_dilated
from gini_jax.platform import tracing_for

NUMBERS = ("NHWC", "HWIO", "NHWC")


@st.composite
def geometries(draw):
    kernel = draw(st.sampled_from([1, 2, 3, 5, 7]))
    stride = draw(st.sampled_from([1, 2, 4]))
    padding = draw(st.sampled_from(["VALID", "SAME", ((0, 1), (2, 0)), ((1, 1), (1, 1))]))
    side = draw(st.sampled_from([8, 9, 16]))
    channels, features = draw(st.sampled_from([(3, 5), (4, 4), (1, 2)]))
    depthwise = draw(st.booleans())
    return kernel, stride, padding, side, channels, channels if depthwise else features, depthwise


def inputs(geometry, dtype="float32"):
    kernel, stride, padding, side, channels, features, depthwise = geometry
    rng = np.random.default_rng(0)
    inside = 1 if depthwise else channels
    x = jnp.asarray(rng.normal(size=(6, side, side, channels)), dtype)
    w = jnp.asarray(rng.normal(size=(kernel, kernel, inside, features)) / kernel, dtype)
    groups = channels if depthwise else 1
    options = {
        "window_strides": (stride, stride),
        "padding": padding,
        "dimension_numbers": NUMBERS,
        "feature_group_count": groups,
    }
    return x, w, options


def value_and_gradients(conv, x, w, options):
    def loss(x, w):
        y = conv(x, w, **options)
        return (jnp.sin(y.astype(jnp.float32))).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, w)


@settings(max_examples=25, deadline=None)
@given(geometry=geometries())
def test_value_and_gradients_equal_xlas(geometry):
    x, w, options = inputs(geometry)
    ours = value_and_gradients(conv_general_dilated, x, w, options)
    theirs = value_and_gradients(lax.conv_general_dilated, x, w, options)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5), ours, theirs)


GEOMETRIES = [
    (3, 1, "SAME", 16, 4, 6, False),
    (2, 1, ((0, 1), (1, 0)), 16, 4, 6, False),
    (1, 2, "VALID", 16, 4, 6, False),
    (3, 2, ((1, 1), (1, 1)), 16, 4, 4, True),
    (1, 1, "VALID", 16, 3, 6, False),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_own_way_is_taken_for_the_networks_geometries(geometry, monkeypatch):
    """So that the comparison above compares two ways."""
    x, w, options = inputs(geometry)
    taken = []
    monkeypatch.setattr(
        convolution, "_convolve", lambda *a: taken.append(1) or convolution._by_xla(*a)
    )
    conv_general_dilated(x, w, **options)
    assert taken


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_bfloat16_is_accumulated_in_float32(geometry):
    x, w, options = inputs(geometry, "bfloat16")
    _, ours = value_and_gradients(conv_general_dilated, x, w, options)
    assert [g.dtype for g in ours] == [jnp.bfloat16, jnp.bfloat16]
    exact = inputs(geometry)
    _, theirs = value_and_gradients(lax.conv_general_dilated, *exact)
    for a, b in zip(ours, theirs, strict=True):
        error = np.abs(np.asarray(a, np.float32) - b).max() / np.abs(b).max()
        assert error < 0.05


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_under_vmap_remat_and_on_eight_devices(geometry):
    x, w, options = inputs(geometry)

    def loss(conv, w, x):
        return jnp.sin(conv(x, w, **options)).sum()

    ours, theirs = (partial(loss, c) for c in (conv_general_dilated, lax.conv_general_dilated))
    expected = jax.jit(jax.grad(theirs))(w, x)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
    close(jax.jit(jax.grad(jax.checkpoint(ours)))(w, x), expected)
    several = jnp.stack([x, 2 * x])
    mapped = jax.jit(jax.vmap(jax.grad(ours), (None, 0)))(w, several)
    close(mapped[0], expected)
    parts = jnp.concatenate([x, x[:2]]).reshape(8, 1, *x.shape[1:])
    gradients = jax.pmap(jax.grad(ours), in_axes=(None, 0))(w, parts)
    whole = jax.jit(jax.grad(theirs))(w, parts.reshape(8, *x.shape[1:]))
    close(gradients.sum(axis=0), whole)


def test_second_derivatives_work_in_reverse_mode_and_forward_mode_is_refused_on_cpus():
    x, w, options = inputs(GEOMETRIES[0])

    def norm(conv, w):
        return jnp.square(jax.grad(lambda w: jnp.sin(conv(x, w, **options)).sum())(w)).sum()

    ours, theirs = (
        jax.jit(jax.grad(partial(norm, c)))(w)
        for c in (conv_general_dilated, lax.conv_general_dilated)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda w: conv_general_dilated(x, w, **options), (w,), (w,))


@pytest.mark.slow
def test_forward_mode_works_in_what_is_traced_for_a_tpu():
    model = create_model("resnet18", num_classes=3, width=4)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)

    def loss(images):
        return jnp.sin(model.apply(variables, images)[0]).sum()

    gradient = jax.jit(jax.grad(loss))(images)
    with tracing_for("tpu"):
        _, slope = jax.jit(lambda x: jax.jvp(loss, (x,), (gradient,)))(images)
        assert "custom_vjp" not in str(jax.make_jaxpr(loss)(images))
    np.testing.assert_allclose(slope, jnp.square(gradient).sum(), rtol=1e-4)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_tpus_program_is_that_of_xlas_convolution(geometry):
    x, w, options = inputs(geometry)

    def program(conv):
        def loss(x, w):
            return jnp.sin(conv(x, w, **options)).sum()

        traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(x, w)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
        lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
        return sorted(line.split("stablehlo.convolution")[1] for line in lines), "dot" in text

    ours, theirs = program(conv_general_dilated), program(lax.conv_general_dilated)
    assert len(ours[0]) == len(theirs[0]) == 3 or geometry[0] == 1
    assert ours[1] == theirs[1] is False
