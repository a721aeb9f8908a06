"""A run, from its config to its files."""

import json
import shutil
import signal
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from configs import digits
from gini_jax.data import load_dataset
from gini_jax.data.source import Dataset, Split
from gini_jax.errors import RunError, Stopped
from gini_jax.losses.terms import PRESETS, TABLE, TermSpec
from gini_jax.modes import eval as eval_mode
from gini_jax.modes.train import main as train
from gini_jax.training.experiment import build_experiment
from gini_jax.training.initial import start_state
from gini_jax.training.interrupt import Interrupts
from gini_jax.training.stepper import Stepper
from gini_jax.training.workdir import saved_config
from tests.helpers import dense, tiny
from tests.helpers.reference import random_variables
from tests.helpers.runs import cut_in_half, lines_of, set_up, steps_of, without_times
from tests.helpers.small_networks import LayerDrops


def small_config(objective=None, file=tiny, **changes):
    config = file.get_config(objective)
    config.update_from_flattened_dict(changes)
    return config


class PlainNetwork(nn.Module):
    """Without batch norm, so that parts of a batch do not depend on each other."""

    @nn.compact
    def __call__(self, images, train=False, example_index=None):
        features = nn.silu(nn.Dense(32)(images.reshape(len(images), -1)))
        return nn.Dense(10)(features), {"stage2": features}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return train(small_config(report=True), workdir, devices=jax.devices()[:1]), workdir


def test_a_run_writes_what_it_promises(finished):
    result, workdir = finished
    assert json.loads((workdir / "result.json").read_text()) == result
    promised = (
        "config_name objective seed epochs steps best_epoch val_accuracy test_accuracy "
        "test_class_accuracy test_top5 test_loss test_ece feature_gini feature_kl "
        "feature_kl_uniform probe_accuracy knn_accuracy nmi scatter_ratio nc1 nc2 nc3 nc4 "
        "selectivity effective_rank feature_correlation top_purity train_seconds "
        "images_per_second num_parameters device jax_version"
    )
    assert set(promised.split()) <= set(result)
    assert result["steps"] == 6 * (1197 // 64)
    assert [line["epoch"] for line in lines_of(workdir)] == [1, 2, 3, 4, 5, 6]
    for png in ("curves.png", "impurity.png"):
        assert (workdir / png).read_bytes().startswith(b"\x89PNG")
    assert json.loads((workdir / "config.json").read_text())["objective"] == "gini_kl"


def test_the_terms_are_off_before_their_first_epoch(finished):
    first, second, *_ = lines_of(finished[1])
    assert first["train_loss"] == first["train_ce"]
    terms = 0.5 * second["train_gini"] + 0.5 * second["train_kl"]
    np.testing.assert_allclose(second["train_loss"], second["train_ce"] + terms, rtol=1e-5)


def test_the_best_validation_accuracy_is_the_one_tested(finished):
    result, workdir = finished
    lines = lines_of(workdir)
    accuracies = [line["val_accuracy"] for line in lines]
    assert result["val_accuracy"] == max(accuracies)
    assert result["best_epoch"] == 1 + accuracies.index(max(accuracies))


def test_the_latest_three_checkpoints_and_their_best_are_kept(finished):
    _, workdir = finished
    accuracies = [line["val_accuracy"] for line in lines_of(workdir)]
    best = {1 + int(np.argmax(accuracies[:epoch])) for epoch in (4, 5, 6)}
    assert steps_of(workdir) == sorted(18 * epoch for epoch in {4, 5, 6} | best)


def test_every_epoch_is_logged_and_validation_joins_where_there_is_one(tmp_path):
    config = small_config("ce", dense, num_epochs=6, eval_every_epochs=3)
    train(config, tmp_path, devices=jax.devices()[:1])
    lines = lines_of(tmp_path)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in lines if "val_accuracy" in line] == [3, 6]
    assert all("train_ce" in line for line in lines)


def test_a_second_sigint_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.status() == 130
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


def test_jax_is_asked_about_signals_once_after_each_call(tmp_path, monkeypatch):
    """And by nobody else, such as orbax: where processes stop follows from these numbers."""
    asked = []
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    changes = {"steps_per_call": 5, "checkpoint_every_minutes": 1e-4}
    config = small_config("ce", dense, num_epochs=2, **changes)
    for name in ("first", "second"):  # one count: jax has one point to stop at for the process
        train(config, tmp_path / name, devices=jax.devices()[:1])
    calls_of_an_epoch = 4  # 18 steps
    assert asked == list(range(asked[0], asked[0] + 2 * 2 * calls_of_an_epoch))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_result(finished, tmp_path):
    again = train(small_config(), tmp_path, devices=jax.devices()[:1])
    assert without_times(again) == without_times(finished[0])
    assert lines_of(tmp_path) == lines_of(finished[1])


@pytest.mark.parametrize("devices", [1, 3])
def test_evaluation_repeats_the_result_and_leaves_the_record_alone(finished, devices):
    """On 3 devices too, which neither of the batches is divisible by."""
    result, workdir = finished
    record = (workdir / "result.json").read_bytes()
    again = eval_mode.main(saved_config(workdir), workdir, devices=jax.devices()[:devices])
    for key in ("test_accuracy", "test_loss", "feature_gini", "feature_kl"):
        np.testing.assert_allclose(again[key], result[key], rtol=1e-5)
    assert json.loads((workdir / "eval.json").read_text()) == again
    assert (workdir / "result.json").read_bytes() == record


@pytest.mark.slow
def test_a_signal_in_the_last_call_of_an_epoch_is_no_obstacle(finished, tmp_path, monkeypatch):
    advance = Stepper.__call__

    def signalled(stepper, state, step, count):
        if step == 2 * 18 - 1:
            signal.raise_signal(signal.SIGTERM)
        return advance(stepper, state, step, count)

    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        patch.setattr(Stepper, "__call__", signalled)
        train(small_config(), tmp_path, devices=jax.devices()[:1])
    assert stopped.value.status == 143
    result = train(small_config(), tmp_path, devices=jax.devices()[:1])
    assert without_times(result) == without_times(finished[0])
    assert lines_of(tmp_path) == lines_of(finished[1])


def test_with_no_readable_checkpoint_the_error_tells_which_were_tried(finished, tmp_path):
    workdir = shutil.copytree(finished[1], tmp_path / "run")
    cut_in_half(workdir / "checkpoints")
    with (
        pytest.warns(match="is damaged"),
        pytest.raises(RunError, match="no checkpoint in") as error,
    ):
        train(small_config(), workdir, devices=jax.devices()[:1])
    for step in steps_of(workdir):
        assert f"step {step}: " in str(error.value)
    assert "Resume with the version of gini_jax that wrote them" in str(error.value)


@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_module(tmp_path, remat):
    changes = {"schedule.learning_rate": 1e30, "debug_nans": True, "model.remat": remat}
    config = small_config(**changes)
    with pytest.raises(RunError, match="the loss is not finite at step") as error:
        train(config, tmp_path, devices=jax.devices()[:1])
    assert "gradient_norm" in str(error.value)
    assert "learning rate" in str(error.value)
    first, none = "The first module whose output is not finite", "were not finite"
    assert first in str(error.value) or none in str(error.value)


def test_a_run_is_finished_once_everything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("gini_jax.modes.train._draw_curves", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        config = small_config("ce", dense, num_epochs=1, report=True)
        train(config, tmp_path, devices=jax.devices()[:1])
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_the_result_does_not_depend_on_the_number_of_devices(finished, tmp_path, devices):
    several = train(small_config(), tmp_path, devices=jax.devices()[:devices])
    assert abs(several["test_loss"] - finished[0]["test_loss"]) < 1e-3
    for a, b in zip(lines_of(finished[1]), lines_of(tmp_path), strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), atol=1e-3)


@pytest.mark.slow
def test_steps_with_all_terms_do_not_depend_on_the_number_of_devices():
    """Of the default network, whole."""
    config = digits.get_config()
    config.loss.update(start_epoch=1, running_decay=0.5, layers=("stage3", "pooled"))
    ends = []
    for n in (1, 2, 8):
        run = set_up(config, n)
        state = run.state
        for _ in range(3):
            state, metrics = run.step(state, run.data, run.order)
        ends.append(jax.device_get((state.params, state.batch_stats, metrics)))
    for end in ends[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6), ends[0], end)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    """Eight parts of 16, through layers without batch norm's dependence on the part."""
    ends = []
    for parts, n in ((1, 1), (8, 1), (4, 2)):
        config = small_config(**{"loss.start_epoch": 1, "batch_size": 128})
        config.grad_accumulation = parts
        run = set_up(config, n, model=PlainNetwork())
        state, metrics = run.step(run.state, run.data, run.order)
        ends.append(jax.device_get((state.params, metrics)))
    for end in ends[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), ends[0], end)


@pytest.mark.slow
def test_several_steps_in_a_call_are_the_same_steps():
    config = small_config(**{"loss.start_epoch": 1})
    one, three = set_up(config, 2), set_up(config, 2, num_steps=3)
    state, lines = one.state, []
    for _ in range(3):
        state, metrics = one.step(state, one.data, one.order)
        lines.append(jax.device_get(metrics))
    together, metrics = three.step(three.state, three.data, three.order)
    for name, values in jax.device_get(metrics).items():
        assert values.shape == (3,)
        expected = np.concatenate([line[name] for line in lines])
        np.testing.assert_allclose(values, expected, rtol=1e-4, err_msg=name)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), together.params, state.params
    )


@pytest.mark.slow
def test_a_run_in_bfloat16_learns(tmp_path):
    config = small_config(**{"model.dtype": "bfloat16"})
    assert train(config, tmp_path, devices=jax.devices()[:1])["test_accuracy"] > 0.9


@pytest.mark.parametrize(
    "objective",
    [
        *("ce", "gini", "kl", "renyi_kl", "fisher", "supcon"),
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("entropy_kl", "mutual_information")),
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("island", "triplet")),
        pytest.param("multi_similarity", marks=pytest.mark.slow),
    ],
)
def test_every_objective_adds_its_terms_under_their_own_names(objective):
    config = small_config(objective, **{"loss.start_epoch": 1})
    run = set_up(config, model=PlainNetwork())
    _, metrics = run.step(run.state, run.data, run.order)
    terms = PRESETS[objective]
    assert set(metrics) == {"loss", "ce", "accuracy", "gradient_norm", *terms}
    added = sum(weight * metrics[term] for term, weight in terms.items())
    np.testing.assert_allclose(metrics["loss"] - metrics["ce"], added, atol=1e-5)


class Spread(NamedTuple):
    """A term that is no function of sums, with a state: how far apart the logits are."""

    def init(self, outputs):
        return {"steps": jnp.zeros(())}

    def __call__(self, outputs, state):
        logits = outputs.logits
        if outputs.axis_name is not None:
            logits = jax.lax.all_gather(logits, outputs.axis_name, tiled=True)
        distance = (logits[:, None] - logits[None]) ** 2
        return distance.mean(), {"steps": state["steps"] + 1}


def test_a_term_over_pairs_is_that_of_the_whole_batch_on_devices_and_in_micro_batches(monkeypatch):
    monkeypatch.setitem(TABLE, "spread", TermSpec(lambda context: Spread()))
    config = small_config("ce", **{"loss.start_epoch": 1})
    with config.unlocked():
        config.loss.terms = {"spread": 0.1}
        config.objective = "spread"
    ends = []
    for n, parts in ((1, 1), (2, 1), (8, 1), (2, 4)):
        config.grad_accumulation = parts
        run = set_up(config, n, model=PlainNetwork())
        state, metrics = run.step(run.state, run.data, run.order)
        assert state.terms.terms["spread"]["steps"] == 1
        ends.append(jax.device_get((state.params, metrics)))
    for end in ends[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), ends[0], end)


@pytest.mark.slow
@pytest.mark.parametrize("broadcast", [False, True], ids=["dropout", "drop_path"])
def test_masks_belong_to_examples_on_any_number_of_devices_and_in_parts(broadcast):
    config = small_config(**{"loss.start_epoch": 1})
    config.loss.layers = ("pooled",)
    ends = []
    for parts, n in ((1, 1), (1, 2), (1, 8), (4, 2)):
        config.grad_accumulation = parts
        run = set_up(config, n, model=LayerDrops(broadcast))
        state, metrics = run.step(run.state, run.data, run.order)
        ends.append(jax.device_get((state.params, metrics)))
    for end in ends[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), ends[0], end)


@pytest.mark.slow
def test_running_sums_train_several_layers_with_either_impurity(tmp_path):
    """In calls of 7 steps, of which the last of the 18 steps' takes what is left; one is traced."""
    changes = {"loss.running_decay": 0.9, "loss.layers": ("stage2", "pooled"), "num_epochs": 1}
    changes |= {"loss.start_epoch": 1, "steps_per_call": 7, "profile": True}
    result = train(small_config("entropy_kl", **changes), tmp_path, devices=jax.devices()[:2])
    assert result["steps"] == 18
    assert 0 < result["feature_gini"] < 1
    assert list((tmp_path / "profile").rglob("*.trace.json.gz"))


@pytest.mark.slow
def test_one_epoch_of_a_narrow_resnet18_on_cifar100_starts(shared_tfds, tmp_path, monkeypatch):
    """Two steps on the real images; the whole epoch is in the README's table."""
    from configs import cifar100_resnet18
    from gini_jax import data

    config = cifar100_resnet18.get_config()
    config.dataset.data_dir = str(shared_tfds)
    whole = data.load_dataset(config.dataset)
    config.num_epochs, config.batch_size, config.model.width = 1, 16, 4
    config.eval_batch_size, config.loss.start_epoch, config.evals = 100, 1, ()
    config.report = False
    few = {name: Split(s.images[:100], s.labels[:100]) for name, s in whole.splits.items()}
    few["train"] = Split(*(array[:32] for array in few["train"]))
    dataset = Dataset(few, whole.class_names, 32)
    monkeypatch.setattr("gini_jax.modes.train.load_dataset", lambda _, check: dataset)
    result = train(config, tmp_path / "run", devices=jax.devices()[:2])
    assert result["steps"] == 2
    assert result["notes"] == [
        "schedule.boundaries: (60, 120, 160, 200) have no effect in a run of 1 epochs"
    ]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_run_starts_from_pytorch_weights(suffix, tmp_path):
    from gini_jax.models import create_model
    from tests.helpers.torch_networks import as_torch

    model = create_model("resnet_digits", 7, width=8, blocks=(1, 1))
    variables = random_variables(model, 8)
    weights = as_torch(variables, "resnet_digits")
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch = pytest.importorskip("torch", reason="writes .pth files, which needs PyTorch")
        torch.save({name: torch.tensor(value) for name, value in weights.items()}, path)
    else:
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, path)
    config = small_config(**{"model.init": str(path)})
    dataset = load_dataset(config.dataset)
    state = start_state(build_experiment(config, dataset, jax.devices()[:1]))
    kernel = state.params["stage2_block1"]["conv1"]["conv"]["kernel"]
    expected = variables["params"]["stage2_block1"]["conv1"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, expected)
    assert state.params["head"]["dense"]["kernel"].shape == (16, 10)
