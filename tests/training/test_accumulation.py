"""Micro-batches: every objective has the gradients of the whole batch."""

import jax
import numpy as np
import pytest

from gini_jax.data import load_dataset
from gini_jax.data.source import Dataset
from gini_jax.losses.terms import PRESETS
from tests.helpers.small_networks import headed, started_config

QUICK = ("gini_kl", "supcon")
OTHERS = {
    "held ratios": ("supcon", {"loss.hold_gradient_ratios": True}),
    "held ratios of sums and pairs": (
        "gini_kl",
        {"loss.terms.triplet": 0.5, "loss.hold_gradient_ratios": True},
    ),
    "running sums": ("gini_kl", {"loss.terms.supcon": 0.5, "loss.running_decay": 0.5}),
    "chunks": ("supcon", {"loss.terms.supcon.chunk_size": 5}),
    "layers": ("supcon", {"loss.terms.supcon.weight.stage2": 0.7}),
}
CASES = {name: (name, {}) for name in PRESETS if name != "ce"} | OTHERS


def digits_of(objective):
    """The digits; with superclasses, where the objective needs them."""
    found = load_dataset(started_config("ce").dataset)
    groups = tuple(k % 3 for k in range(10))
    with_groups = Dataset(found.splits, found.class_names, 8, ("a", "b", "c"), groups)
    return with_groups if objective == "hierarchy" else found


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize(
    "case", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in CASES]
)
def test_four_parts_of_a_batch_train_like_the_whole(case, devices):
    objective, changes = CASES[case]
    ends = []
    for parts in (1, 4):
        config = started_config(objective, grad_accumulation=parts, **changes)
        run = headed(config, devices, dataset=digits_of(objective), num_steps=3)
        state, metrics = run.step(run.state, run.data, run.order)
        ends.append(jax.device_get((state.trainable, metrics)))
    (whole, said), (parted, also) = ends
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parted), strict=True):
        assert np.abs(a - b).max() <= 1e-6 * max(np.abs(a).max(), 1e-3), case
    for name in said:
        np.testing.assert_allclose(said[name], also[name], rtol=2e-4, atol=1e-6, err_msg=name)
