"""The terms' share of the gradient at their layers, and the ramp of their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gini_jax.data import load_dataset
from gini_jax.data.sampling import epoch_order
from gini_jax.data.source import Split
from gini_jax.losses import gini_loss, kl_loss
from gini_jax.training.progress import examples_per_class
from gini_jax.training.step import augmented_batch
from tests import tiny
from tests.runs import set_up


def config_of(**changes):
    config = tiny.get_config("gini_kl")
    config.update_from_flattened_dict({"loss.start_epoch": 1, **changes})
    return config


@pytest.mark.parametrize(("devices", "start_epoch"), [(1, 1), (8, 3)])
def test_shares_equal_a_direct_computation_by_grad(devices, start_epoch):
    """And do not depend on whether the terms are on yet."""
    config = config_of(**{"loss.start_epoch": start_epoch, "loss.layers": ("stage2", "pooled")})
    run = set_up(config, devices)
    state = jax.device_get(run.state)
    train = load_dataset(config.dataset).splits["train"]
    first = epoch_order(config, 0, train.labels)[0]
    batch = augmented_batch(state, Split(train.images[first], train.labels[first]), run.experiment)
    model = run.experiment.model.clone(axis_name=None)

    def outputs(added):
        (logits, features), _ = model.apply(
            state.variables, batch.images, train=True, mutable=["batch_stats"], added=added
        )
        return logits, features

    _, features = outputs(None)
    zeros = {layer: jnp.zeros_like(features[layer]) for layer in config.loss.layers}

    def ce(added):
        return optax.softmax_cross_entropy(outputs(added)[0], batch.labels).mean()

    def term(loss, layers):
        return 0.5 * sum(loss(layer, batch.labels) for layer in layers.values()) / len(layers)

    def norm(tree):
        return np.sqrt(sum(float(jnp.square(x).sum()) for x in jax.tree.leaves(tree)))

    of_ce = norm(jax.grad(ce)(zeros))
    layers = {layer: features[layer] for layer in config.loss.layers}
    _, metrics = run.step(run.state, run.data, run.order)
    for name, loss in (("gini", gini_loss), ("kl", kl_loss)):
        expected = norm(jax.grad(lambda x, loss=loss: term(loss, x))(layers)) / of_ce
        np.testing.assert_allclose(metrics[f"share_{name}"][0], expected, rtol=1e-4)


def test_shares_of_micro_batches_are_those_of_the_whole_without_batch_norm():
    from tests.test_train import LayerDrops

    shares = []
    for parts in (1, 4):
        config = config_of(**{"loss.layers": ("pooled",), "grad_accumulation": parts})
        run = set_up(config, 2, model=LayerDrops(broadcast=False))
        _, metrics = run.step(run.state, run.data, run.order)
        shares.append([metrics[f"share_{name}"][0] for name in ("gini", "kl")])
    np.testing.assert_allclose(shares[0], shares[1], rtol=1e-4)


def test_weights_rise_over_the_ramp():
    config = config_of(**{"loss.ramp_epochs": 2.0})
    run = set_up(config)
    state, seen = run.state, []
    for _ in range(3):
        state, metrics = run.step(state, run.data, run.order)
        terms = 0.5 * metrics["gini"][0] + 0.5 * metrics["kl"][0]
        seen.append((metrics["loss"][0] - metrics["ce"][0]) / terms)
    np.testing.assert_allclose(seen, np.arange(1, 4) / (2 * 18), rtol=1e-3)


def test_too_few_examples_per_class_are_a_warning_with_a_way_out():
    text = examples_per_class(64, 102)
    assert text.startswith("warning: a batch holds 0.6 examples per class")
    assert "--config.batch_size=204" in text
