"""A run that goes on with another number of devices ends as one that stays where it began."""

import jax
import numpy as np
import pytest

from gini_jax.devices import replicate
from gini_jax.losses.terms import PRESETS
from tests.helpers import tiny
from tests.helpers.runs import set_up

# Without micro-batches: which examples they hold, and so what batch norm sees, depends on the
# devices. tests/training/test_step.py compares them in a network without batch norm.
OPTIONS = {
    "held ratios": {"loss.hold_gradient_ratios": True},
    "running sums": {"loss.running_decay": 0.9},
    "average": {"optimizer.ema_decay": 0.9},
    "label smoothing, mixup": {"loss.label_smoothing": 0.1, "augment.mixup": 0.2},
    "balanced classes": {"loss.class_weights": ("balanced",)},
}
ALL = [
    *((objective, {}) for objective in PRESETS if objective != "hierarchy"),  # needs superclasses
    *(("gini_kl", options) for options in OPTIONS.values()),
    *((x, OPTIONS["held ratios"]) for x in ("cosface", "supcon", "proxy_anchor")),
]
QUICK = [("cosface", OPTIONS["held ratios"])]


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        pytest.param(*one, id=str(one), marks=() if one in QUICK else pytest.mark.slow)
        for one in ALL
    ],
)
def test_state_means_the_same_on_any_number_of_devices(objective, options):
    config = tiny.get_config(objective)
    config.update_from_flattened_dict({"loss.start_epoch": 1, "batch_size": 64, **options})
    ends = []
    for devices in ((1, 1, 1), (4, 1, 2)):
        state = None
        for count in devices:
            run = set_up(config, count)
            state = run.state if state is None else replicate(state, jax.devices()[:count])
            for _ in range(2):
                state, metrics = run.step(state, run.data, run.order)
            state = jax.device_get(state)
        ends.append((state, jax.device_get(metrics)))
    for one, other in zip(jax.tree.leaves(ends[0]), jax.tree.leaves(ends[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-5)
