"""What a run may add to the plain recipe: averages, clipping, weights, early stops, extensions."""

import json

import jax
import numpy as np
import optax
import pytest

from gini_jax.config.change import changed, default_config
from gini_jax.data import cache, load_dataset
from gini_jax.data.source import Dataset, Split
from gini_jax.errors import InputError
from gini_jax.modes.train import _set_init
from gini_jax.modes.train import main as train
from gini_jax.trained import load
from gini_jax.training import initial
from gini_jax.training.checkpoints import Checkpoints
from gini_jax.training.checks import check_config, notes_on
from gini_jax.training.experiment import build_experiment
from gini_jax.training.gradients import apply_model
from gini_jax.training.initial import check_weights, start_state
from gini_jax.training.optim import create_optimizer
from gini_jax.training.state import init_state
from gini_jax.training.step import augmented_batch
from tests.helpers import dense, tiny
from tests.helpers.runs import lines_of, set_up


def config_of(objective="ce", **changes):
    config = tiny.get_config(objective)
    changed(config, changes)
    return config


def leaves64(tree):
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(jax.device_get(tree))]


def test_the_average_of_the_variables_follows_its_recursion():
    """In float64, with the decay min(0.9, (1 + t) / (10 + t)) of TensorFlow, t from 0."""
    run = set_up(config_of(**{"optimizer.ema_decay": 0.9}))
    state, average = run.state, leaves64(run.state.variables)
    for t in range(5):
        state, _ = run.step(state, run.data, run.order)
        decay = min(0.9, (1 + t) / (10 + t))
        new = leaves64(state.variables)
        average = [decay * a + (1 - decay) * b for a, b in zip(average, new, strict=True)]
    for ours, expected in zip(leaves64(state.evaluated), average, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped_to_the_global_norm():
    config = default_config().optimizer
    config.update(weight_decay=0.0, momentum=0.0, clip_norm=0.5)
    optimizer = create_optimizer(config, lambda step: 1.0)
    gradients = {"a": np.array([3.0, 4.0], np.float32), "b": np.array([12.0], np.float32)}
    updates, _ = optimizer.update(gradients, optimizer.init(gradients), gradients)
    np.testing.assert_allclose(updates["a"], [-0.5 * 3 / 13, -0.5 * 4 / 13], rtol=1e-6)
    small = jax.tree.map(lambda x: x / 100, gradients)
    updates, _ = optimizer.update(small, optimizer.init(gradients), gradients)
    np.testing.assert_allclose(updates["b"], [-0.12], rtol=1e-6)


@pytest.mark.parametrize(
    "given", [("balanced",), pytest.param(tuple(range(1, 11)), marks=pytest.mark.slow)]
)
def test_class_weights_weigh_cross_entropy(given):
    """Against the definition, in float64; balanced weights against scikit-learn's."""
    from sklearn.utils.class_weight import compute_class_weight

    config = config_of(**{"loss.class_weights": given})
    whole = load_dataset(config.dataset)
    kept = np.flatnonzero((whole.splits["train"].labels != 3) | (np.arange(1197) % 4 == 0))
    part = Split(*(np.asarray(x)[kept] for x in whole.splits["train"]))
    dataset = Dataset({**whole.splits, "train": part}, whole.class_names, whole.image_size)
    run = set_up(config, dataset=dataset)
    weights = np.array(given, np.float64) if len(given) > 1 else None
    if weights is None:
        weights = compute_class_weight("balanced", classes=np.arange(10), y=part.labels)
    state, rows = jax.device_get(run.state), jax.device_get(run.order)[0, 0]
    images = Split(part.images[rows], part.labels[rows])
    alone = run.experiment._replace(model=run.experiment.model.clone(axis_name=None))

    @jax.jit
    def logits_of(images):
        batch = augmented_batch(state, images, run.experiment)
        return apply_model(state.params, state.batch_stats, batch, alone)[0].logits

    logits = np.asarray(logits_of(images), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = part.labels[rows]
    expected = -(weights[labels] * log_p[np.arange(len(labels)), labels]).mean()
    _, metrics = run.step(run.state, run.data, run.order)
    np.testing.assert_allclose(metrics["ce"][0], expected, rtol=1e-5)


def test_too_few_class_weights_are_refused():
    config = config_of(**{"loss.class_weights": (1.0, 2.0)})
    with pytest.raises(InputError, match="has 2 numbers, but there are 10 classes"):
        build_experiment(config, load_dataset(config.dataset), jax.devices()[:1])


def test_a_run_stops_once_validation_no_longer_improves(tmp_path, capsys):
    """With a learning rate of almost 0, it soon does not."""
    config = dense.get_config("ce")
    changed(config, {"schedule.learning_rate": 1e-9, "early_stopping_epochs": 2})
    result = train(config, tmp_path / "run", devices=jax.devices()[:1])
    accuracies = [line["val_accuracy"] for line in lines_of(tmp_path / "run")]
    best = 1 + int(np.argmax(accuracies))
    assert result["best_epoch"] == best and len(accuracies) == best + 2 < 6
    assert result["epochs"] == best + 2 and result["steps"] == 18 * (best + 2)
    capsys.readouterr()
    again = train(config, tmp_path / "run", devices=jax.devices()[:1])
    assert again["test_loss"] == result["test_loss"] and again["epochs"] == best + 2
    assert "to train on, raise --config.early_stopping_epochs" in capsys.readouterr().out
    config.early_stopping_epochs = 3
    assert train(config, tmp_path / "run", devices=jax.devices()[:1])["epochs"] > best + 2


@pytest.mark.slow
def test_a_finished_run_of_a_constant_learning_rate_is_extended(tmp_path):
    """To the same end as a run that was that long from the start; the average included."""
    changes = {"schedule.name": "constant", "optimizer.ema_decay": 0.95}
    one = jax.devices()[:1]
    for epochs in (1, 2):
        extended = train(config_of(num_epochs=epochs, **changes), tmp_path / "a", devices=one)
    whole = train(config_of(num_epochs=2, **changes), tmp_path / "b", devices=one)
    assert extended["test_loss"] == whole["test_loss"] and extended["epochs"] == 2
    assert lines_of(tmp_path / "a") == lines_of(tmp_path / "b")
    with pytest.raises(InputError, match="num_epochs=1 is fewer"):
        train(config_of(num_epochs=1, **changes), tmp_path / "a", devices=one)
    # What is tested and loaded is the average, not the last parameters.
    step = whole["steps"] * whole["best_epoch"] // 2
    like = set_up(config_of(**changes)).state
    state, _ = Checkpoints(tmp_path / "b" / "checkpoints").restore(step, like)
    loaded = load(tmp_path / "b").variables
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(state.average))
    assert optax.global_norm(jax.tree.map(np.subtract, state.params, loaded["params"])) > 1e-3


@pytest.mark.slow
def test_a_cosine_run_cannot_be_extended_but_its_weights_start_another(tmp_path, capsys):
    one, first = jax.devices()[:1], tmp_path / "first"
    train(config_of(num_epochs=1), first, devices=one)
    with pytest.raises(InputError, match=f"--workdir=NEW --init_from={first}"):
        train(config_of(num_epochs=2), first, devices=one)
    config = config_of(num_epochs=1, **{"schedule.learning_rate": 1e-9})
    train(config, tmp_path / "second", init_from=str(first), devices=one)
    assert json.loads((tmp_path / "second/config.json").read_text())["model"]["init"] == str(first)
    dataset = load_dataset(config.dataset)
    state = start_state(build_experiment(config, dataset, one))
    jax.tree.map(np.testing.assert_array_equal, dict(state.params), load(first).variables["params"])
    losses = [lines_of(tmp_path / run)[0]["train_loss"] for run in ("first", "second")]
    assert losses[1] < losses[0] - 0.1
    config.model.width = 16
    with pytest.raises(InputError, match="has another network"):
        start_state(build_experiment(config, dataset, one))
    config.model.init = "pip:none"  # as of a config file, which a flag wins over
    _set_init(config, str(first))
    assert config.model.init == str(first)
    with pytest.raises(InputError, match="is no file and no folder of a run"):
        train(config_of(), tmp_path / "third", init_from=str(first / "nothing"), devices=one)
    # The run resumes and ends although the other one is gone.
    first = first.rename(tmp_path / "moved")
    longer = config_of(num_epochs=1, **{"schedule.learning_rate": 1e-9})
    longer.model.init = str(tmp_path / "first")
    train(longer, tmp_path / "second", devices=one)
    assert "the untrained network is not evaluated" in capsys.readouterr().out
    dataset = Dataset(dataset.splits, (*dataset.class_names, "none"), dataset.image_size)
    config.model.width, config.model.init = 8, str(first)
    experiment = build_experiment(config, dataset, one)
    check_weights(experiment)
    assert start_state(experiment).params["head"]["dense"]["kernel"].shape[1] == 11
    assert "the head keeps its initial values" in capsys.readouterr().out


def test_what_the_shapes_of_the_data_show_is_refused_before_anything_is_decoded(
    tmp_path, monkeypatch
):
    one = jax.devices()[:1]
    train(config_of(num_epochs=1), tmp_path / "first", devices=one)
    monkeypatch.setattr(cache, "decoded", lambda *_: pytest.fail("images were decoded"))
    with pytest.raises(InputError, match="exceeds the 1197 training images"):
        train(config_of(batch_size=2000), tmp_path / "second", devices=one)
    wider = config_of(**{"model.width": 16, "model.init": str(tmp_path / "first")})
    with pytest.raises(InputError, match="has another network"):
        train(wider, tmp_path / "second", devices=one)


def test_weights_without_statistics_start_an_average(tmp_path, monkeypatch):
    """As those of a network without batch norm are: a flat dictionary has no empty collection."""
    config = config_of(**{"optimizer.ema_decay": 0.9})
    dataset, one = load_dataset(config.dataset), jax.devices()[:1]
    config.model.init = str(tmp_path)
    experiment = build_experiment(config, dataset, one)
    params = init_state(experiment).params
    monkeypatch.setattr(initial, "weights_of_run", lambda *_: {"params": params})
    state = start_state(experiment)
    assert jax.tree.structure(state.average) == jax.tree.structure(state.variables)
    jax.tree.map(np.testing.assert_array_equal, state.average["params"], params)


def test_a_list_in_a_config_file_is_a_tuple_to_the_network():
    config = config_of()
    config.model.blocks = [1, 1]
    assert set_up(config).experiment.model.blocks == (1, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset.test_size": 5},
        {"dataset.image_column": "img"},
        {"dataset.skip_damaged": True},
        {"dataset.examples_per_class": 8},
        {"early_stopping_epochs": 50},
    ],
)
def test_options_without_effect_are_said(changes):
    (path,) = changes
    assert any(note.startswith(f"{path}=") for note in notes_on(config_of(**changes)))


def test_options_that_cannot_work_are_refused():
    config = config_of(**{"early_stopping_epochs": 3, "eval_every_epochs": 2})
    with pytest.raises(InputError, match="must be a multiple of eval_every_epochs=2"):
        check_config(config, 1)
    config = config_of(**{"early_stopping_epochs": 2})
    whole = load_dataset(config.dataset)
    without = {**whole.splits, "val": Split(whole.splits["val"].images[:0], np.zeros(0, np.int32))}
    dataset = Dataset(without, whole.class_names, whole.image_size)
    with pytest.raises(InputError, match="needs a validation split"):
        build_experiment(config, dataset, jax.devices()[:1])
