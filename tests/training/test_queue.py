"""A queue in training: a setting of losses over pairs, exact on devices, resumed bit for bit."""

import jax
import numpy as np
import pytest

from gini_jax import losses
from gini_jax.config.change import changed
from gini_jax.modes.train import main as train
from tests.helpers import dense
from tests.helpers.runs import lines_of
from tests.helpers.small_networks import first_batch, headed, seen, started_config

QUEUE = {"loss.terms.supcon.queue": 96, "loss.terms.supcon.temperature": 0.5}


def test_the_second_step_compares_with_the_first_batch():
    """The first step has an empty queue; the second one has its features, by a direct call."""
    config = started_config("supcon", **QUEUE)
    run = headed(config)
    _, batch, _, features = seen(run, *first_batch(run, config))
    before, rows = np.asarray(features), np.asarray(batch.labels).argmax(axis=1)
    state, metrics = run.step(run.state, run.data, run.order)
    plain = losses.supcon_loss(before, rows, temperature=0.5)
    np.testing.assert_allclose(np.ravel(metrics["supcon"])[0], plain, rtol=1e-5)
    queue = jax.device_get(state.terms.terms["supcon"]["queues"]["stage2"])
    np.testing.assert_allclose(queue.features[:64], before, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(queue.labels, [*rows, *[-1] * 32])
    _, again = run.step(state, run.data, run.order)
    assert abs(np.ravel(again["supcon"])[0] - plain) > 1e-3


def test_a_queue_counts_from_its_epoch_on():
    ends = []
    for more in ({}, {"loss.terms.supcon.queue": 96, "loss.terms.supcon.queue_epoch": 2}):
        run = headed(started_config("supcon", **more), num_steps=3)
        _, metrics = run.step(run.state, run.data, run.order)
        ends.append(metrics["supcon"])
    np.testing.assert_allclose(*ends, rtol=1e-6)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "devices", "parts"),
    [
        ("supcon", 4, 1),
        pytest.param("supcon", 1, 4, marks=SLOW),
        ("supcon", 4, 4),
        pytest.param("triplet", 4, 4, marks=SLOW),
        pytest.param("multi_similarity", 4, 4, marks=SLOW),
        pytest.param("relation_triplet", 4, 4, marks=SLOW),
        ("simclr", 4, 4),
    ],
)
def test_steps_with_a_queue_do_not_depend_on_devices_and_micro_batches(name, devices, parts):
    ends = []
    for n, accumulation in ((1, 1), (devices, parts)):
        queue = {f"loss.terms.{name}.queue": 96}
        config = started_config(name, grad_accumulation=accumulation, **queue)
        run = headed(config, n, num_steps=3)
        state, metrics = run.step(run.state, run.data, run.order)
        queues = state.terms.terms[name]["queues"]
        assert next(iter(queues.values())).filled == 96
        ends.append(jax.device_get((state.params, metrics[name])))
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_queue(tmp_path):
    config = changed(dense.get_config("ce"), {"loss.terms.triplet": 0.5, "num_epochs": 2})
    changed(config, {"schedule.name": "constant", "loss.terms.triplet.queue": 50})
    changed(config, {"loss.start_epoch": 1})
    one = jax.devices()[:1]
    train(config, tmp_path / "whole", devices=one)
    config.num_epochs = 1
    train(config, tmp_path / "resumed", devices=one)
    config.num_epochs = 2
    train(config, tmp_path / "resumed", devices=one)
    for name in ("train_loss", "train_triplet", "val_loss"):
        whole, resumed = (
            [line[name] for line in lines_of(tmp_path / x)] for x in ("whole", "resumed")
        )
        assert whole == resumed, name
