"""The examples learn, and every loss works in every framework."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.helpers.baselines import LOSSES, C, K, batch

NEEDS = {"equinox_cnn": "equinox", "haiku_mlp": "haiku"}


EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
QUICK = ("flax_linen", "plain_jax")


@pytest.mark.parametrize(
    "name", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in EXAMPLES]
)
def test_an_example_learns(name):
    library = NEEDS.get(name, "flax")
    pytest.importorskip(library, reason=f"the example needs {library}, which is not installed")
    steps = 3 if name == "simclr_in_parts" else 300
    accuracy = importlib.import_module(f"examples.{name}").main(steps=steps)
    assert accuracy > 0.7  # 0.1 by chance


def gradient_in_linen(loss, w, x):
    import flax.linen as nn

    model = nn.Dense(w.shape[1], use_bias=False)
    gradient = jax.grad(lambda params: loss(model.apply({"params": params}, x)))({"kernel": w})
    return gradient["kernel"]


def gradient_in_nnx(loss, w, x):
    from flax import nnx

    model = nnx.Linear(*w.shape, use_bias=False, rngs=nnx.Rngs(0))
    model.kernel[...] = w
    return nnx.grad(lambda model: loss(model(x)))(model)["kernel"][...]


def gradient_in_equinox(loss, w, x):
    eqx = pytest.importorskip("equinox", reason="needs equinox, which is not installed")
    model = eqx.nn.Linear(*w.shape, use_bias=False, key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.weight, model, w.T)
    return eqx.filter_grad(lambda model: loss(jax.vmap(model)(x)))(model).weight.T


def gradient_in_haiku(loss, w, x):
    hk = pytest.importorskip("haiku", reason="needs haiku, which is not installed")
    model = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(len(w), with_bias=False)(x)))
    gradient = jax.grad(lambda params: loss(model.apply(params, x)))({"linear": {"w": w}})
    return gradient["linear"]["w"]


FRAMEWORKS = (
    gradient_in_equinox,
    *(
        pytest.param(x, marks=pytest.mark.slow)
        for x in (gradient_in_linen, gradient_in_nnx, gradient_in_haiku)
    ),
)


@pytest.mark.parametrize("gradient", FRAMEWORKS, ids=lambda f: f.__name__.rpartition("_")[2])
def test_every_loss_has_its_gradient_in_every_framework(gradient):
    """The sum of all of them, by a layer's weights, equals that in plain JAX."""
    x, labels = batch()[0].mean(axis=(1, 2)), batch()[1]
    w = jnp.asarray(np.random.default_rng(1).normal(size=(C, C)), jnp.float32)

    @jax.jit
    def loss(features):
        x = jnp.tanh(features)
        return sum(each(x, labels, num_classes=K) for each in LOSSES.values())

    expected = jax.grad(lambda w: loss(x @ w))(w)
    np.testing.assert_allclose(gradient(loss, w, x), expected, rtol=1e-4, atol=1e-4)
