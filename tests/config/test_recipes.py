"""Every shipped experiment, traced at its true size."""

import importlib
from dataclasses import replace

import jax
import numpy as np
import pytest
from clu import parameter_overview

from gini_jax.config.change import set_model
from gini_jax.data import Dataset, Split
from gini_jax.data.loader import resident
from gini_jax.modes import summary as summary_mode
from gini_jax.training.experiment import build_experiment, check_before_data, with_batch
from gini_jax.training.frozen import as_seen
from gini_jax.training.state import init_state
from gini_jax.training.step import create_step
from tests.conftest import ROOT
from tests.helpers.reference import SMALL
from tests.helpers.runs import set_up

# Classes, image size, and the parameters in millions: torchvision's ResNets and the CvT paper's
# table, less their heads for 1,000 classes.
SIZES = {"digits": (10, 8, 0.3), "cifar100": (100, 32, None), "caltech101": (102, 224, None)}
SIZES["finetune"] = (20, 128, 2.25)
SIZES["probe"] = (20, 224, 0.33)  # the hidden layer and the head
SIZES["fashion"] = (10, 28, 0.3)
BODIES = {"resnet17": None, "resnet18": 11.17, "resnet50": 23.5, "cvt13": 19.6}
BODIES |= {"mobilenet_v2": 2.35, "efficientnet_lite0": 3.5}


NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
FEW = ("cifar100_resnet18", "digits", "fashion_mnist")


@pytest.mark.parametrize(
    "name",
    [x if x in FEW else pytest.param(x, marks=pytest.mark.slow) for x in NAMES],
)
def test_a_config_builds_its_training_step(name):
    """Traced, not compiled: every shape of the run is the true one."""
    config = with_batch(importlib.import_module(f"configs.{name}").get_config(), 10_000, 10)
    assert config.name == name
    devices = jax.devices()[:1]
    check_before_data(config, devices)
    data_name, _, model_name = name.partition("_")
    num_classes, size, millions = SIZES[data_name]
    size = config.dataset.image_size or size
    shape = (config.batch_size, *(2 * [size + size // 7 * (size > 32)]), 3)
    labels = np.zeros(config.batch_size, np.int32)
    split = Split(np.broadcast_to(np.uint8(0), shape), labels)
    names = tuple(map(str, range(num_classes)))
    dataset = Dataset(dict.fromkeys(("train", "val", "test"), split), names, size)
    experiment = build_experiment(config, dataset, devices)
    state = jax.eval_shape(lambda: init_state(experiment))
    if config.model.frozen:
        shapes = split._replace(images=jax.ShapeDtypeStruct(shape, np.uint8))
        whole = replace(dataset, splits=dict.fromkeys(dataset.splits, shapes))
        split = as_seen(experiment, whole, state.variables).splits["train"]
        split = split._replace(images=np.zeros(split.images.shape, np.float32))
    order = np.zeros((1, 1, config.batch_size), np.int32)
    new, metrics = jax.eval_shape(create_step(experiment, devices), state, resident(split), order)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    # The logits depend on the layers, of CvT too.
    ratios = {"gradient_ratio_gini", "gradient_ratio_kl"}
    assert set(metrics) == {"loss", "ce", "accuracy", "gini", "kl", "gradient_norm"} | ratios
    count = parameter_overview.count_parameters(new.params)
    millions = millions or BODIES[model_name]
    if millions:
        assert abs(count / 1e6 - millions) < 0.3


def test_a_batch_by_the_number_of_images_gives_twelve_steps_or_eight_images():
    config = importlib.import_module("configs.finetune").get_config()
    sizes = (1, 24, 191, 192, 767, 768, 10**6)
    chosen = {size: with_batch(config, size, num_classes=2) for size in sizes}
    assert [x.batch_size for x in chosen.values()] == [8, 8, 8, 16, 32, 64, 64]
    for x in chosen.values():  # the learning rate of an image stays
        assert x.schedule.learning_rate / x.batch_size == pytest.approx(0.01 / 64)
    config.batch_size = 24
    assert with_batch(config, 10**6, num_classes=2).schedule.learning_rate == 0.01


def test_a_batch_by_the_number_of_images_holds_two_of_each_class_where_it_can():
    config = importlib.import_module("configs.finetune").get_config()
    found = [with_batch(config, n, k).batch_size for n, k in ((103, 5), (200, 30), (40, 30))]
    assert found == [16, 64, 8]  # 40 images are fewer than two of each of 30 classes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar100_cvt13", "caltech101_resnet50"])
def test_a_step_of_a_shrunk_network_moves_every_parameter(name):
    """Compiled and run: what the ResNets of the other tests have not, dropout and attention."""
    config = importlib.import_module(f"configs.{name}").get_config()
    set_model(config, config.model.name, **SMALL[config.model.name])
    config.batch_size, config.schedule.warmup_epochs = 4, 0.0
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    split = Split(images, rng.integers(0, 10, 4).astype(np.int32))
    dataset = Dataset(dict.fromkeys(("train", "val", "test"), split), ("c",) * 10, 32)
    run = set_up(config, dataset=dataset)
    before = jax.device_get(run.state.params)
    new, metrics = run.step(run.state, run.data, run.order)
    assert np.isfinite(metrics["loss"]).all()
    changed = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), new.params, before)
    # a key's bias has no gradient: softmax ignores it
    assert np.mean(jax.tree.leaves(changed)) > 0.9


def test_the_summary_counts_operations_as_by_hand(capsys):
    config = importlib.import_module("configs.digits").get_config()
    summary = summary_mode.main(config, ROOT)
    convolutions = 8 * 8 * 9 * (3 * 16 + 2 * 16 * 16)  # stem and stage 1
    for stage, side in ((2, 4), (3, 2), (4, 1)):
        c = 16 * 2 ** (stage - 1)
        convolutions += side**2 * (9 * (c // 2 * c + c * c) + c // 2 * c)
    by_hand = 2 * (convolutions + 128 * 10)
    # XLA leaves out the products with the padding's zeros, most of them at 1 x 1.
    assert 0.3 * by_hand < summary["forward_flops"] < 1.2 * by_hand
    assert summary["feature_shapes"]["stage4"] == (1, 1, 128)
    assert f"{summary['num_parameters']:,}" in capsys.readouterr().out
