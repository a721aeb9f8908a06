"""Networks: shapes, parameter counts, and batch norm over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gini_jax.devices import AXIS
from gini_jax.errors import InputError
from gini_jax.models import create_model
from gini_jax.models.layers import BatchNorm
from tests.helpers.reference import SMALL, random_variables


def _shapes(name, num_classes=100, size=32, **overrides):
    model = create_model(name, num_classes, **overrides)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    (logits, features), variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images
    )
    return logits, features, sum(x.size for x in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_220_132), ("resnet50", 23_705_252)])
def test_parameter_counts(name, count):
    assert _shapes(name)[2] == count


def test_features_of_both_stems():
    logits, features, _ = _shapes("resnet18")
    assert logits.shape == (2, 100)
    sizes = {name: feature.shape[1:] for name, feature in features.items()}
    assert sizes == {
        "stem": (32, 32, 64),
        "stage1": (32, 32, 64),
        "stage2": (16, 16, 128),
        "stage3": (8, 8, 256),
        "stage4": (4, 4, 512),
        "pooled": (512,),
    }
    _, features, _ = _shapes("resnet50", size=224, stem="imagenet", dtype="bfloat16")
    assert features["stem"].shape == (2, 56, 56, 64)
    assert features["stage4"].shape == (2, 7, 7, 2048)
    assert features["stage4"].dtype == jnp.bfloat16
    assert features["pooled"].dtype == jnp.float32


def test_an_unknown_setting_is_refused():
    with pytest.raises(InputError, match="did you mean 'width'"):
        create_model("resnet18", 10, widht=8)


def test_batch_norm_over_eight_devices_equals_that_of_the_whole_batch():
    x = jax.random.normal(jax.random.key(0), (16, 3, 3, 5)) * 2 + 1
    variables = BatchNorm().init(jax.random.key(0), x, train=True)

    def loss(params, x, norm):
        y, updates = norm.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            x,
            train=True,
            mutable=["batch_stats"],
        )
        return (jnp.sin(y) * y).mean(), updates

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (params_grad, x_grad), updates = gradient(variables["params"], x, BatchNorm())

    def part(x):
        grads, updates = gradient(variables["params"], x, BatchNorm(axis_name=AXIS))
        return jax.lax.pmean(grads[0], AXIS), grads[1], updates

    parts = jax.pmap(part, axis_name=AXIS)(x.reshape((8, 2, 3, 3, 5)))
    for name in params_grad:
        np.testing.assert_allclose(parts[0][name][0], params_grad[name], atol=1e-6)
    # Each device's loss is a mean over its own part: an eighth of the weight is missing.
    np.testing.assert_allclose(parts[1].reshape(x.shape) / 8, x_grad, atol=1e-7)
    for name in ("mean", "var"):
        expected = updates["batch_stats"][name]
        np.testing.assert_allclose(parts[2]["batch_stats"][name][0], expected, rtol=1e-5)


def test_the_running_variance_is_the_unbiased_one():
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, train=True)
    _, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    expected = 0.9 + 0.1 * x.var(axis=0, ddof=1)
    np.testing.assert_allclose(updates["batch_stats"]["var"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"widths": (64, 192)}, "one number per stage"),
        ({"heads": (1, 3, 5)}, "each width must be a multiple"),
    ],
)
def test_settings_of_a_cvt_that_do_not_fit_together_are_refused(settings, text):
    with pytest.raises(InputError, match=text):
        create_model("cvt13", 10, **settings)


def test_cvt_features_and_counts():
    logits, features, count = _shapes("cvt13", 1000, size=224)
    assert round(count / 1e6) == 20
    assert {name: feature.shape[1:] for name, feature in features.items()} == {
        "stage1": (56 * 56, 64),
        "stage2": (28 * 28, 192),
        "stage3": (14 * 14, 384),
        "pooled": (384,),
    }
    assert logits.dtype == jnp.float32
    _, features, count = _shapes("cvt_w24", 1000, size=384)
    assert features["stage3"].shape == (2, 24 * 24, 1024)
    assert round(count / 1e6) == 277  # the paper's table 2


@pytest.mark.parametrize("name", ["resnet18", pytest.param("cvt13", marks=pytest.mark.slow)])
def test_recomputing_activations_changes_no_gradient(name):
    settings = SMALL[name]
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)

    def gradient(remat):
        model = create_model(name, 5, remat=remat, **settings)
        variables = random_variables(model)

        def loss(params):
            out, _ = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)},
            )
            return out[0][:, 0].sum()

        return jax.jit(jax.grad(loss))(variables["params"])

    plain, recomputed = gradient(False), gradient(True)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale),
        plain,
        recomputed,
    )
