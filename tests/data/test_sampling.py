"""Samplers and subsets: which examples an epoch and a smaller training set consist of."""

import numpy as np
import pytest

from gini_jax.config.change import default_config
from gini_jax.data import dataset_shapes, load_dataset
from gini_jax.data.sampling import (
    balanced_subset,
    check_sampler,
    epoch_order,
    stratified,
)
from gini_jax.data.source import Dataset, Split
from gini_jax.errors import InputError
from gini_jax.training.experiment import build_experiment

LABELS = np.repeat(np.arange(5), [100, 40, 20, 7, 3])


def sampling_config(**changes):
    config = default_config()
    config.update_from_flattened_dict({"batch_size": 12, **changes})
    return config


def divided(labels, sizes):
    return stratified(labels, sizes, seed=0, keys=[f"{i}.png" for i in range(len(labels))])


def test_parts_have_exactly_their_sizes_and_every_class_its_share():
    labels = np.repeat(np.arange(100), 5)
    for size in (40, 50, 60, 100):
        parts = divided(labels, {"test": size, "val": 30})
        assert [len(parts[name]) for name in ("test", "val", "train")] == [size, 30, 470 - size]
        assert np.ptp(np.bincount(labels[parts["test"]], minlength=100)) <= 1
        rows = np.concatenate(list(parts.values()))
        assert (np.sort(rows) == np.arange(500)).all()
    # Every class keeps an example to train on.
    rare = np.concatenate([np.repeat(np.arange(10), 100), [10, 11, 12]])
    parts = divided(rare, {"test": 202, "val": 20})
    assert [len(rows) for rows in parts.values()] == [202, 20, 781]
    assert len(np.unique(rare[parts["train"]])) == 13
    singles = np.concatenate([np.arange(50), np.repeat(50, 50)])
    parts = divided(singles, {"test": 20, "val": 20})
    assert [len(rows) for rows in parts.values()] == [20, 20, 60]
    with pytest.raises(InputError, match=r"leave less than one of each class.* at most 49 in all"):
        divided(singles, {"test": 30, "val": 20})
    uneven = np.bincount(LABELS[divided(LABELS, {"test": 17})["test"]], minlength=5)
    assert uneven.tolist() == [10, 4, 2, 1, 0]  # of 100, 40, 20, 7 and 3


def test_an_epoch_sees_every_image_once_but_for_the_remainder():
    config, labels = sampling_config(seed=1, batch_size=10), np.zeros(103, int)
    order = epoch_order(config, 2, labels)
    assert order.shape == (10, 10)
    assert len(set(order.ravel().tolist())) == 100
    assert (order == epoch_order(config, 2, labels)).all()
    assert (order != epoch_order(config, 3, labels)).any()


def test_class_balanced_batches_hold_p_classes_with_m_examples_each():
    """And a class's examples are drawn equally often, give or take one."""
    config = sampling_config(
        **{"dataset.sampler": "class_balanced", "dataset.examples_per_class": 4}
    )
    order = epoch_order(config, 0, LABELS)
    assert order.shape == (len(LABELS) // 12, 12)
    for batch in order:
        counts = np.bincount(LABELS[batch], minlength=5)
        assert sorted(counts.tolist()) == [0, 0, 4, 4, 4]
    drawn = np.bincount(order.ravel(), minlength=len(LABELS))
    for k in range(5):
        assert np.ptp(drawn[k == LABELS]) <= 1
    assert (order == epoch_order(config, 0, LABELS)).all()
    assert (order != epoch_order(config, 1, LABELS)).any()


@pytest.mark.parametrize(
    ("batch_size", "each", "fix"),
    [
        (30, 4, "--config.batch_size=28"),
        (64, 4, "--config.dataset.examples_per_class=8"),
    ],
)
def test_batches_that_cannot_be_balanced_are_refused_with_a_fix_that_works(batch_size, each, fix):
    changes = {"dataset.sampler": "class_balanced", "dataset.examples_per_class": each}
    config = sampling_config(batch_size=batch_size, **changes)
    with pytest.raises(InputError, match=fix):
        check_sampler(config, num_classes=10)
    path, value = fix.removeprefix("--config.").split("=")
    config.update_from_flattened_dict({path: int(value)})
    check_sampler(config, num_classes=10)


def test_a_class_without_training_images_does_not_count():
    config = sampling_config(**{"dataset.sampler": "class_balanced", "batch_size": 40})
    whole = load_dataset(config.dataset)
    rows = np.flatnonzero(whole.splits["train"].labels != 9)
    train = Split(*(np.asarray(x)[rows] for x in whole.splits["train"]))
    dataset = Dataset({**whole.splits, "train": train}, whole.class_names, whole.image_size)
    with pytest.raises(InputError, match="takes 10 classes per batch, but there are only 9"):
        build_experiment(config, dataset)


def test_a_balanced_subset_takes_from_each_class_what_it_has():
    rows = balanced_subset(LABELS, 60, seed=0)
    assert len(set(rows.tolist())) == 60
    counts = np.bincount(LABELS[rows]).tolist()
    assert counts[3:] == [7, 3]
    assert sum(counts[:3]) == 50 and max(counts[:3]) - min(counts[:3]) <= 1
    assert set(rows.tolist()) <= set(balanced_subset(LABELS, 80, seed=0).tolist())
    assert (rows != balanced_subset(LABELS, 60, seed=1)).any()


def test_train_size_leaves_validation_and_test_as_they_are():
    whole, config = load_dataset(default_config().dataset).splits, default_config()
    config.dataset.train_size = 200
    assert dataset_shapes(config.dataset).splits["train"].images.shape == (200, 8, 8, 3)
    part = load_dataset(config.dataset).splits
    assert np.bincount(part["train"].labels).tolist() == 10 * [20]
    every = {image.tobytes() for image in whole["train"].images}
    assert {image.tobytes() for image in np.asarray(part["train"].images)} <= every
    for name in ("val", "test"):
        assert (np.asarray(part[name].images) == np.asarray(whole[name].images)).all()
    config.dataset.train_size = 2000
    with pytest.raises(InputError, match="exceeds the 1197 training images"):
        load_dataset(config.dataset)
