"""Where features fire, in networks of every kind."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gini_jax.config.change import default_config, set_model
from gini_jax.config.files import from_saved
from gini_jax.downstream import explain
from gini_jax.trained import Trained
from gini_jax.training.experiment import create_model_of
from gini_jax.training.workdir import config_json

RNG = np.random.default_rng(0)


@pytest.mark.slow
def test_explanations_show_where_features_fire_also_with_a_last_layer_of_one_pixel():
    """Brightness in one corner makes the feature fire: the map is brightest there."""
    config = default_config("ce")
    for name, settings in (
        ("resnet_digits", {"width": 4, "blocks": (1, 1, 1, 1)}),
        ("mobilenet_v2", {"stages": ((1, 8, 1, 2, 3), (2, 8, 2, 2, 3)), "stem": 8, "last": 16}),
    ):
        set_model(config, name, **settings)
        config = from_saved(json.loads(config_json(config)))  # with lists where tuples were
        model = create_model_of(config, 10, axis_name=None)
        size = 8 if name == "resnet_digits" else 32
        variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
        trained = Trained(model, variables, config, tuple("0123456789"), size, 0)
        images = RNG.integers(0, 40, (3, size, size, 3)).astype(np.uint8)
        found = explain.explained(trained, images)
        assert found.layer == {"resnet_digits": "stage3", "mobilenet_v2": "last"}[name]
        assert found.maps.shape == (3, 4, size, size)
        assert 0.5 < found.maps.max() <= 1
        pooled = trained.features(images)["pooled"]
        rows = np.arange(3)[:, None]
        votes = (
            pooled[rows, found.features] * trained.head[found.features, found.predicted[:, None]]
        )
        np.testing.assert_allclose(found.votes, votes, rtol=1e-4, atol=1e-6)


def test_maps_are_the_layers_own_activations_where_pooled_features_are_its_means():
    """The gradient of a mean is the same at each pixel, so HiResCAM is the activation itself."""
    config = default_config("ce")
    set_model(config, "resnet18", width=4, blocks=(1, 1))
    model = create_model_of(config, 10, axis_name=None)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    trained = Trained(model, variables, config, tuple("0123456789"), 8, 0)
    images = RNG.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    chosen = np.array([[0, 3], [5, 1]])
    found = explain._where_fired(trained, "stage2", jnp.asarray(images), chosen)
    activations = trained.features(images)["stage2"]
    expected = np.stack([activations[i][..., chosen[i]].transpose(2, 0, 1) for i in (0, 1)])
    np.testing.assert_allclose(found, np.maximum(expected, 0) / 16, rtol=1e-4, atol=1e-6)
