"""Metrics of training steps against a float64 computation from the network's outputs."""

import jax
import numpy as np
import pytest

from gini_jax.config.change import changed, default_config
from gini_jax.errors import InputError
from gini_jax.training.checks import check_config
from tests.helpers.small_networks import first_batch, headed, seen, started_config


@pytest.mark.parametrize(("devices", "parts"), [(1, 1), (4, 2)])
@pytest.mark.parametrize("labelled", [0, 40])
def test_metrics_are_means_over_the_labelled_examples_of_the_global_batch(devices, parts, labelled):
    """Also of a user's own; where some labels are missing, a batch is not taken in parts."""
    own = "tests.helpers.plugins:certainty"
    config = started_config("ce", step_metrics=("top5", own))
    config.dataset.labelled = labelled
    config.grad_accumulation = 1 if labelled else parts
    run = headed(config, devices)
    images, labels = first_batch(headed(config), config)
    _, metrics = run.step(run.state, run.data, run.order)
    _, batch, logits, _ = seen(headed(config), images, labels)
    there, logits = np.asarray(batch.labels).sum(axis=1) > 0, np.asarray(logits, np.float64)
    assert there.all() == (not labelled)
    logits, labels = logits[there], np.asarray(batch.labels).argmax(axis=1)[there]
    ranks = (-logits).argsort(axis=1).argsort(axis=1)[np.arange(len(labels)), labels]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = {
        "accuracy": (ranks == 0).mean(),
        "top5": (ranks < 5).mean(),
        own: (shares / shares.sum(axis=1, keepdims=True)).max(axis=1).mean(),
    }
    found = {name: float(jax.device_get(metrics[name]).reshape(-1)[0]) for name in expected}
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_metric_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"unknown step_metrics 'top_5'.*did you mean 'top5'"):
        check_config(changed(default_config(), {"step_metrics": ("top_5",)}), 1)
