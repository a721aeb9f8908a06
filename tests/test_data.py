"""Splits, order, augmentation, and the cache of decoded images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar100_resnet18
from gini_jax import data
from gini_jax.augment import augment_batch, centre_crop
from gini_jax.config import default_config
from gini_jax.errors import InputError
from gini_jax.evaluate import padded_batches
from gini_jax.parallel import shard


def test_digits_are_split_by_class_and_no_image_is_in_two_splits():
    splits = data.load_dataset(default_config().dataset).splits
    assert {name: len(split.labels) for name, split in splits.items()} == data.DIGITS_SIZES
    for split in splits.values():
        assert split.images.dtype == np.uint8
        share = np.bincount(split.labels, minlength=10) / len(split.labels)
        assert np.abs(share - 0.1).max() < 0.01
    seen = [{image.tobytes() for image in split.images} for split in splits.values()]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_an_epoch_sees_every_image_once_but_for_the_remainder():
    order = data.epoch_order(seed=1, epoch=2, num_examples=103, batch_size=10)
    assert order.shape == (10, 10)
    assert len(set(order.ravel().tolist())) == 100
    assert (order == data.epoch_order(1, 2, 103, 10)).all()
    assert (order != data.epoch_order(1, 3, 103, 10)).any()


def test_devices_share_the_batch_in_order():
    batch = np.arange(24)
    for devices in (1, 2, 8):
        assert (shard(batch, devices).ravel() == batch).all()


def test_crops_move_the_image_with_zero_padding_and_flips_mirror_it():
    config = default_config().augment
    config.crop_padding, config.flip = 2, True
    image = np.random.default_rng(0).integers(1, 256, (6, 6, 3)).astype(np.uint8)
    keys = jax.random.split(jax.random.key(0), 600)
    batch = augment_batch(config, keys, jnp.tile(image, (600, 1, 1, 1)), 6)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0))).astype(np.float32) / 255
    crops = [padded[i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
    possible = [crop for c in crops for crop in (c, c[:, ::-1])]
    which = [[np.allclose(out, crop) for crop in possible].index(True) for out in np.asarray(batch)]
    assert set(which) == set(range(50))  # 600 draws: one of 50 missing with p < 0.001


def test_augmentation_of_an_image_does_not_depend_on_its_batch():
    config = default_config().augment
    config.crop_padding, config.flip = 2, True
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3)).astype(np.uint8)
    keys = jax.random.split(jax.random.key(0), 8)
    whole = augment_batch(config, keys, images, 6)
    half = augment_batch(config, keys[4:], images[4:], 6)
    np.testing.assert_array_equal(whole[4:], half)


def test_evaluation_sees_the_centre():
    images = np.zeros((1, 8, 8, 3), np.uint8)
    images[:, 2:6, 2:6] = 255
    assert (centre_crop(images, 4) == 1.0).all()


def test_padded_batches_hold_every_image_once():
    split = data.Split(np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1), np.arange(7))
    batches = list(padded_batches(split, 3))
    assert [batch["mask"].sum() for batch in batches] == [3, 3, 1]
    kept = [batch["label"][batch["mask"] == 1] for batch in batches]
    assert np.concatenate(kept).tolist() == list(range(7))


@pytest.fixture
def caltech(shared_tfds):
    config = default_config().dataset
    config.update(name="caltech101", data_dir=str(shared_tfds), image_size=28, val_size=60)
    if not (shared_tfds / "caltech101").is_dir():
        pytest.skip(f"needs Caltech-101 in TFDS form at {shared_tfds}, which is not there")
    return config


def test_images_of_many_sizes_are_stored_square_with_room_for_a_crop(caltech, tmp_path, capfd):
    first = data.load_dataset(caltech, tmp_path)
    assert first.image_size == 28
    assert first.splits["train"].images.shape == (3000, 32, 32, 3)
    assert first.splits["test"].images.shape == (6084, 32, 32, 3)
    assert first.num_classes == 102
    capfd.readouterr()
    second = data.load_dataset(caltech, tmp_path)  # out of the cache
    assert "decoding" not in capfd.readouterr().err
    for name, split in first.splits.items():
        np.testing.assert_array_equal(split.images, second.splits[name].images)
    path = next(tmp_path.glob("*/test-images.npy"))
    path.write_bytes(path.read_bytes()[:1000])
    third = data.load_dataset(caltech, tmp_path)
    assert "damaged" in capfd.readouterr().out
    np.testing.assert_array_equal(first.splits["test"].images, third.splits["test"].images)


def test_many_sizes_without_an_image_size_are_refused(caltech, tmp_path):
    caltech.image_size = 0
    with pytest.raises(InputError, match="image_size"):
        data.load_dataset(caltech, tmp_path)


def test_a_validation_split_as_large_as_the_training_split_is_refused(caltech, tmp_path):
    caltech.val_size = 3060
    with pytest.raises(InputError, match="val_size=3060"):
        data.load_dataset(caltech, tmp_path)


def test_a_set_that_is_not_in_the_data_directory_is_refused_with_the_command(tmp_path):
    config = cifar100_resnet18.get_config().dataset
    config.data_dir = str(tmp_path)
    with pytest.raises(InputError, match=f"tfds build cifar100 --data_dir={tmp_path}"):
        data.load_dataset(config, tmp_path / "cache")
