"""Every shipped experiment builds and takes a step, on tiny input."""

import importlib

import jax
import numpy as np
import pytest

from gini_jax.data import Dataset, Split
from gini_jax.parallel import replicate
from gini_jax.step import create_step, init_state
from gini_jax.summary import summarize
from gini_jax.train import build_experiment, check_before_data
from tests.conftest import ROOT

# Networks small enough for a CPU; what the config tells of them is checked before.
SMALL = {
    "resnet17": {"width": 4, "blocks": (1, 1, 1, 1)},
    "resnet18": {"width": 4, "blocks": (1, 1, 1, 1)},
    "resnet50": {"width": 4, "blocks": (1, 1, 1, 1)},
    "cvt13": {"widths": (8, 16, 24), "blocks": (1, 1, 1), "heads": (1, 2, 3)},
    "resnet_digits": {},
}


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("*.py")))
def test_a_config_builds_and_takes_a_step(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert config.name == name
    check_before_data(config, jax.devices()[:1])
    with config.unlocked():
        config.model.update(SMALL[config.model.name])
    config.batch_size, config.dataset.val_size, config.num_epochs = 4, 2, 10
    size = 8 if name == "digits" else 32
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, size, size, 3)).astype(np.uint8)
    split = Split(images, rng.integers(0, 10, 4).astype(np.int32))
    dataset = Dataset(dict.fromkeys(("train", "val", "test"), split), ("c",) * 10, size)
    devices = jax.devices()[:1]
    experiment = build_experiment(config, dataset, devices)
    state = init_state(experiment)
    order = np.arange(4, dtype=np.int32).reshape(1, 1, 4)
    new, metrics = create_step(experiment, devices)(
        replicate(state, devices), replicate(split, devices), order
    )
    assert np.isfinite(metrics["loss"])
    assert int(new.step) == 1
    changed = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), new.params, state.params)
    # a key's bias has no gradient (softmax ignores it), and a warm-up may start from 0
    moved = np.mean(jax.tree.leaves(changed))
    assert moved > 0.9 or float(experiment.schedule(0)) == 0.0


def test_the_summary_counts_operations_as_by_hand(capsys):
    config = importlib.import_module("configs.digits").get_config()
    summary = summarize(config)
    convolutions = 8 * 8 * 9 * (3 * 16 + 2 * 16 * 16)  # stem and stage 1
    for stage, side in ((2, 4), (3, 2), (4, 1)):
        c = 16 * 2 ** (stage - 1)
        convolutions += side**2 * (9 * (c // 2 * c + c * c) + c // 2 * c)
    by_hand = 2 * (convolutions + 128 * 10)
    # XLA leaves out the products with the padding's zeros, most of them at 1 x 1.
    assert 0.3 * by_hand < summary["forward_flops"] < 1.2 * by_hand
    assert summary["feature_shapes"]["stage4"] == (1, 1, 128)
    assert f"{summary['num_parameters']:,}" in capsys.readouterr().out
