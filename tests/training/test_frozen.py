"""A frozen network: its features are taken once, and training sees them in the place of images."""

import re

import jax
import numpy as np
import pytest

import gini_jax
from gini_jax.config.change import set_component
from gini_jax.data import load_dataset
from gini_jax.data.augment import augment_batch
from gini_jax.errors import InputError, RunError
from gini_jax.modes import plan
from gini_jax.modes.train import main as train
from gini_jax.training import frozen
from gini_jax.training.checks import notes_on
from tests.helpers import tiny

ONE = jax.devices()[:1]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Features of this file alone."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "gini_jax" / "features"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run that others take the network of."""
    config = tiny.get_config("ce")
    config.update(num_epochs=2)
    config.dataset.train_size = 300
    workdir = tmp_path_factory.mktemp("source")
    train(config, workdir, devices=ONE)
    return workdir


def frozen_config(source, objective="center", **model):
    config = tiny.get_config(objective)
    config.update(num_epochs=2, batch_size=20)
    config.dataset.train_size = 200
    config.loss.update(layers=("pooled",), start_epoch=1)
    config.model.update(init=str(source), frozen=True, hidden=12, **model)
    return config


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("frozen") / "run"
    return train(frozen_config(source, views=2), workdir, devices=ONE), workdir


def body_features(source, images):
    """The network's pooled features of images, computed by flax alone."""
    trained = gini_jax.load(source)
    pixels = np.asarray(images, np.float32) / 255
    return trained.model.apply(trained.variables, pixels, train=False)[1]["pooled"]


def test_the_cache_holds_the_networks_features_of_each_image_and_of_views(run, source, cache):
    config = gini_jax.load(run[1]).config
    train_split, test = (load_dataset(config.dataset).splits[name] for name in ("train", "test"))
    found = {x.shape[0]: x for x in map(np.load, cache.glob("*.npy")) if x.shape[1:] != (1, 16)}
    whole = found[len(train_split.labels)]
    assert whole.shape == (200, 3, 16)
    expected = body_features(source, train_split.images)
    np.testing.assert_allclose(whole[:, 0], expected, rtol=1e-4, atol=1e-5)
    key = jax.random.fold_in(jax.random.key(0), 2)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(200, dtype=np.uint32))
    seen = augment_batch(config.augment, keys, np.asarray(train_split.images), 8)
    expected = body_features(source, seen * 255)
    np.testing.assert_allclose(whole[:, 2], expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(whole[:, 1], whole[:, 2])
    (of_test,) = (x for x in map(np.load, cache.glob("*.npy")) if len(x) == len(test.labels))
    expected = body_features(source, test.images)
    np.testing.assert_allclose(of_test[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_predictions_of_images_are_those_that_were_tested_and_the_network_stays(run, source):
    result, workdir = run
    trained, before = gini_jax.load(workdir), gini_jax.load(source)
    test = load_dataset(trained.config.dataset).splits["test"]
    probabilities = trained.probabilities(np.asarray(test.images))
    assert (probabilities.argmax(1) == test.labels).mean() == pytest.approx(result["test_accuracy"])
    body = trained.variables["batch_stats"]["frozen_body"]
    for kind in ("params", "batch_stats"):
        kept = {k: x for k, x in body[kind].items() if k != "head"}
        jax.tree.map(
            np.testing.assert_array_equal,
            kept,
            {k: before.variables[kind][k] for k in kept},
        )
    params = trained.variables["params"]
    pooled = np.asarray(body_features(source, test.images), np.float64)
    hidden = np.maximum(pooled @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    logits = hidden @ params["head"]["dense"]["kernel"] + params["head"]["dense"]["bias"]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-3, atol=1e-5)
    features = trained.features(np.asarray(test.images[:2]))
    assert {"stem", "stage1", "stage2", "body", "pooled"} == set(features)


def test_features_are_computed_once_and_again_for_other_images_or_views(
    run, source, tmp_path, monkeypatch
):
    computed = []
    compute = frozen._Body._computed

    def counted(self, name, *rest):
        computed.append(name)
        return compute(self, name, *rest)

    monkeypatch.setattr(frozen._Body, "_computed", counted)
    same = frozen_config(source, "supcon", views=2)
    same.seed, same.num_epochs = 1, 1
    train(same, tmp_path / "same", devices=ONE)
    assert computed == []
    other = frozen_config(source, "ce", views=1)
    other.num_epochs = 1
    train(other, tmp_path / "other", devices=ONE)
    assert computed == ["train"]


@pytest.mark.slow
def test_a_damaged_file_of_features_is_computed_again(run, source, cache, tmp_path):
    for path in cache.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:200])
    again = train(frozen_config(source, views=2), tmp_path / "again", devices=ONE)
    assert again["test_loss"] == run[0]["test_loss"]


def test_features_that_cannot_be_kept_are_no_error(run, source, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(frozen, "default_folder", lambda: tmp_path / "file")
    again = train(frozen_config(source, views=2), tmp_path / "again", devices=ONE)
    assert again["test_loss"] == run[0]["test_loss"]
    assert "the features are not kept in" in capsys.readouterr().out


@pytest.mark.slow
def test_two_equal_views_are_refused(source, tmp_path):
    config = frozen_config(source, "simclr")
    with pytest.raises(InputError, match=r"--config.model.views=4 and --config.augment.flip=True"):
        train(config, tmp_path / "run", devices=ONE)
    config.model.views, config.augment.flip = 4, True
    train(config, tmp_path / "run", devices=ONE)


def test_a_margin_does_not_excuse_terms_that_change_nothing(source, tmp_path):
    config = frozen_config(source, "remarnet")
    config.model.hidden = 0
    with pytest.raises(InputError, match="relation acts on features"):
        train(config, tmp_path / "run", devices=ONE)


def test_augmentation_without_views_is_said_to_have_no_effect(source):
    config = frozen_config(source)
    config.augment.flip = True
    assert "augment.flip=True has no effect" in notes_on(config)
    config.model.views = 1
    assert "augment.flip=True has no effect" not in notes_on(config)


@pytest.mark.slow
def test_where_numbers_are_not_finite_the_first_module_is_named(source, tmp_path):
    config = frozen_config(source, "ce")
    config.debug_nans = True
    config.schedule.learning_rate = 1e38
    with pytest.raises(RunError, match="not finite"):
        train(config, tmp_path / "run", devices=ONE)


@pytest.mark.slow
def test_several_devices_train_as_one(run, source, tmp_path):
    found = train(frozen_config(source, views=2), tmp_path / "run", devices=jax.devices()[:4])
    assert found["test_loss"] == pytest.approx(run[0]["test_loss"], rel=1e-4)


@pytest.mark.slow
def test_fine_tuning_starts_from_a_frozen_run_with_its_head(source, tmp_path):
    config = frozen_config(source, "ce")
    config.model.hidden = 0
    train(config, tmp_path / "probe", devices=ONE)
    tuned = tiny.get_config("ce")
    tuned.dataset.train_size = 200
    tuned.update(num_epochs=1, batch_size=20)
    set_component(tuned, "schedule", "constant", learning_rate=1e-12)
    train(tuned, tmp_path / "tuned", init_from=str(tmp_path / "probe"), devices=ONE)
    before, after = (gini_jax.load(tmp_path / x).variables["params"] for x in ("probe", "tuned"))
    np.testing.assert_allclose(
        after["head"]["dense"]["kernel"], before["head"]["dense"]["kernel"], atol=1e-6
    )


def test_a_plan_compiles_the_step_on_features(source, tmp_path):
    pytest.importorskip("libtpu", reason="plans need libtpu, which is not installed")
    config = frozen_config(source)
    config.batch_size = 16
    found = plan.main(config, tmp_path, topology="v5e:2x4")
    assert found["fits"]
    assert found["flops"] < 1e6  # two small layers; the network itself takes more


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model.init": ""}, "model.init names none; set --config.model.init"),
        ({"loss.layers": ("stage2",)}, r"set --config.loss.layers=\"\('pooled',\)\""),
        ({"augment.mixup": 0.2}, "set --config.augment.mixup=0"),
        ({"model.views": 2, "augment.crop_padding": 0, "augment.flip": False}, "changes nothing"),
        ({"model.hidden": 0}, "loss.terms.center acts on features.*set --config.model.hidden=256"),
        ({"model.views": -1}, "model.views=-1 must"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_fix_that_works(source, tmp_path, changes, text):
    config = frozen_config(source)
    for path, value in changes.items():
        section, _, key = path.rpartition(".")
        config[section][key] = value
    with pytest.raises(InputError) as raised:
        train(config, tmp_path / "run", devices=ONE)
    assert re.search(text, str(raised.value))
    if fix := raised.value.fix:
        section, _, key = fix[0].rpartition(".")
        config[section][key] = fix[1]
        train(config, tmp_path / "run", devices=ONE)
