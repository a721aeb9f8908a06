"""Classes held out of training, and wrong labels."""

import numpy as np
import pytest

from gini_jax.config.change import default_config
from gini_jax.data import load_dataset
from gini_jax.data.protocols import noisy
from gini_jax.errors import InputError
from gini_jax.modes import bench
from gini_jax.modes.train import main as train
from tests.helpers import tiny

RNG = np.random.default_rng(0)


def test_held_out_classes_leave_all_splits_and_form_one():
    config = default_config().dataset
    whole = load_dataset(config)
    config.held_out_classes = 3
    dataset = load_dataset(config)
    assert dataset.class_names == tuple("0123456")
    for name in ("train", "val", "test"):
        labels = whole.splits[name].labels
        np.testing.assert_array_equal(dataset.splits[name].labels, labels[labels < 7])
        images = np.asarray(whole.splits[name].images)[labels < 7]
        np.testing.assert_array_equal(np.asarray(dataset.splits[name].images), images)
    test = whole.splits["test"]
    held = dataset.splits["held_out"]
    np.testing.assert_array_equal(held.labels, test.labels[test.labels >= 7])
    np.testing.assert_array_equal(
        np.asarray(held.images), np.asarray(test.images)[test.labels >= 7]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"held_out_classes": 9}, r"leaves less than 2 of the 10 classes.*held_out_classes=5"),
        ({"superclasses": True}, r"digits has no superclasses.*dataset.superclasses=False"),
    ],
)
def test_classes_that_cannot_be_held_out_are_refused(settings, message):
    config = default_config().dataset
    config.update(settings)
    with pytest.raises(InputError, match=message):
        load_dataset(config)


@pytest.mark.parametrize("kind", ["symmetric", "pairwise"])
def test_label_noise_changes_as_many_labels_as_it_says(kind):
    labels = RNG.integers(0, 5, 1000).astype(np.int32)
    changed = noisy(labels, 5, 0.2, kind, seed=3)
    wrong = changed != labels
    assert wrong.sum() == 200
    steps = (changed[wrong] - labels[wrong]) % 5
    assert set(steps) == ({1} if kind == "pairwise" else {1, 2, 3, 4})
    np.testing.assert_array_equal(changed, noisy(labels, 5, 0.2, kind, seed=3))
    assert (changed != noisy(labels, 5, 0.2, kind, seed=4)).any()


def test_label_noise_leaves_validation_and_test_labels_alone():
    config = default_config().dataset
    clean = load_dataset(config)
    config.label_noise = 0.4
    dataset = load_dataset(config)
    share = (dataset.splits["train"].labels != clean.splits["train"].labels).mean()
    assert share == pytest.approx(0.4, abs=1e-3)
    for name in ("val", "test"):
        np.testing.assert_array_equal(dataset.splits[name].labels, clean.splits[name].labels)


@pytest.mark.slow
def test_superclasses_are_learned_from_some_classes_and_tested_on_others(tmp_path, monkeypatch):
    """Digits in two superclasses: 0 to 4, and 5 to 9."""
    from gini_jax.data import SOURCES
    from gini_jax.data.digits import Digits

    class Grouped(Digits):
        superclass_names = ("low", "high")

        def __init__(self, config):
            super().__init__(config)
            self.splits = {
                name: [x._replace(superclass=x.label // 5) for x in examples]
                for name, examples in self.splits.items()
            }

        def fingerprint(self, split):
            return ["grouped", *super().fingerprint(split)]

    monkeypatch.setitem(SOURCES._table, "digits", Grouped)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = tiny.get_config("ce")
    config.num_epochs = 2
    config.dataset.update(superclasses=True, held_out_classes=3)
    with pytest.raises(InputError, match=r"multiple of the 2 superclasses.*held_out_classes=2"):
        train(config, tmp_path / "refused")
    config.dataset.held_out_classes = 4  # 3, 4, 8 and 9
    result = train(config, tmp_path / "run")
    dataset = load_dataset(config.dataset)
    assert dataset.class_names == ("low", "high")
    held = dataset.splits["held_out"]
    counts = {name: len(split.labels) for name, split in dataset.splits.items()}
    assert counts["test"] + counts["held_out"] == 400
    assert set(held.labels) == {0, 1}
    table = bench.main(None, tmp_path / "run", benches="shift")
    (row,) = table.to_dict("records")
    assert row["shift_gap"] == pytest.approx(result["test_accuracy"] - row["shift_accuracy"])
    assert train(config, tmp_path / "run")["test_accuracy"] == result["test_accuracy"]  # resumed


def test_sizes_count_once_classes_are_held_out():
    """Digits have about 120 training images of each class, so 600 of five classes."""
    config = default_config().dataset
    config.update(held_out_classes=5, train_size=1000)
    with pytest.raises(InputError, match=r"train_size=1000 exceeds the 6\d\d training images"):
        load_dataset(config)
    config.train_size = 7  # fewer than ten classes, but more than five
    assert np.bincount(load_dataset(config).splits["train"].labels).tolist() == [2, 2, 1, 1, 1]
    config.train_size = 4
    with pytest.raises(InputError, match="leaves some of the 5 classes"):
        load_dataset(config)


def test_the_share_of_wrong_labels_is_that_of_the_images_with_a_label():
    config = default_config().dataset
    config.update(labelled=20, label_noise=0.2)
    true, found = load_dataset(default_config().dataset), load_dataset(config)
    labels = found.splits["train"].labels
    labelled = labels >= 0
    assert labelled.sum() == 200
    assert (labels != true.splits["train"].labels)[labelled].sum() == 40
    config.label_noise = 0.0
    np.testing.assert_array_equal(load_dataset(config).splits["train"].labels >= 0, labelled)
