"""Splits, order, and the cache of decoded images."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs import cifar100_resnet18
from gini_jax import data
from gini_jax.analysis.runs import arrays_in
from gini_jax.config.change import default_config
from gini_jax.data import cache, digits
from gini_jax.data.source import Example, Split
from gini_jax.devices import shard
from gini_jax.errors import InputError
from gini_jax.evals.extract import padded_batches


def test_digits_are_split_by_class_and_no_image_is_in_two_splits():
    splits = data.load_dataset(default_config().dataset).splits
    assert {name: len(split.labels) for name, split in splits.items()} == digits.SIZES
    for split in splits.values():
        assert split.images.dtype == np.uint8
        share = np.bincount(split.labels, minlength=10) / len(split.labels)
        assert np.abs(share - 0.1).max() < 0.01
    seen = [{image.tobytes() for image in split.images} for split in splits.values()]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_devices_share_the_batch_in_order():
    batch = np.arange(24)
    for devices in (1, 2, 8):
        assert (shard(batch, devices).ravel() == batch).all()


def test_padded_batches_hold_every_image_once():
    split = Split(np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1), np.arange(7))
    batches = list(padded_batches(split, 4, devices=2))
    assert [images.shape for images, _ in batches] == 2 * [(2, 2, 1, 1, 1)]
    kept = [images.reshape(-1)[:count] for images, count in batches]
    assert np.concatenate(kept).tolist() == list(range(7))


# ---------------------------------------------------------------------------- CIFAR-100


@pytest.fixture
def cifar(shared_tfds):
    config = cifar100_resnet18.get_config().dataset
    config.data_dir = str(shared_tfds)
    return config


@pytest.mark.slow
def test_cifar_100_has_its_sizes_its_balance_and_each_image_in_one_split(cifar):
    dataset = data.load_dataset(cifar)
    train, val, test = (dataset.splits[name] for name in ("train", "val", "test"))
    assert [len(split.labels) for split in (train, val, test)] == [46000, 4000, 10000]
    counts = np.bincount(train.labels) + np.bincount(val.labels)
    assert (counts == 500).all()
    assert (np.bincount(test.labels) == 100).all()
    assert np.asarray(train.images).shape == (46000, 32, 32, 3)
    assert train.images.dtype == np.uint8
    # Some pictures are in the set twice; so what is counted is how often each one occurs.
    builder = data.open_source(cifar).builder
    source = builder.as_data_source(split="train[:500]")
    parts = [
        Counter(
            (image.tobytes(), int(label))
            for image, label in zip(np.asarray(split.images), split.labels, strict=True)
        )
        for split in (train, val)
    ]
    whole = parts[0] + parts[1]
    assert whole.total() == 50000
    # docs/data.md states how many training images are pixel-identical to images of other splits.
    pixels = [[image.tobytes() for image in np.asarray(x.images)] for x in (train, val, test)]
    in_test, in_val = (sum(map(set(pixels[other]).__contains__, pixels[0])) for other in (2, 1))
    assert (in_test, in_val) == (10, 2)
    for example in source:
        assert whole[example["image"].tobytes(), int(example["label"])] >= 1
    assert len(whole) > 49_900
    # The set's own: 2 pictures are in both parts of its training split, 10 of `train` in its test.
    pictures = [
        {image.tobytes() for image in np.asarray(split.images)} for split in (train, val, test)
    ]
    shared = [len(pictures[a] & pictures[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert shared == [2, 10, 0]


@pytest.mark.slow
def test_cifar_100_comes_with_its_20_superclasses(cifar):
    dataset = data.load_dataset(cifar, only=("test",))
    assert len(dataset.superclass_names) == 20
    assert (np.bincount(dataset.superclass_of) == 5).all()

    def group_of(name):
        return dataset.superclass_names[dataset.superclass_of[dataset.class_names.index(name)]]

    assert group_of("maple_tree") == "trees"  # as in the set's description
    assert group_of("whale") == "aquatic_mammals"
    assert group_of("rocket") == "vehicles_2"


@pytest.mark.slow
def test_only_the_splits_that_are_needed_are_decoded(cifar, tmp_path):
    cifar.val_size = 0
    dataset = data.load_dataset(cifar, tmp_path, only=("test",))
    assert not list(tmp_path.rglob("train*"))
    assert dataset.splits["train"].images.shape == (50000, 32, 32, 3)


# ---------------------------------------------------------------------------- Caltech-101


@pytest.fixture
def caltech(shared_tfds):
    config = default_config().dataset
    config.update(name="caltech101", data_dir=str(shared_tfds), image_size=28, val_size=60)
    if not (shared_tfds / "caltech101").is_dir():
        pytest.skip(f"needs Caltech-101 in TFDS form at {shared_tfds}, which is not there")
    return config


@pytest.mark.slow
def test_images_of_many_sizes_are_stored_square_with_room_for_a_crop(caltech, tmp_path):
    dataset = data.load_dataset(caltech, tmp_path, only=("train", "val"))
    assert (dataset.image_size, dataset.num_classes) == (28, 102)
    assert dataset.splits["train"].images.shape == (3000, 32, 32, 3)
    assert dataset.splits["test"].images.shape == (6084, 32, 32, 3)
    # The first image by hand: the shorter side to 32, and of that the centre.
    builder = data.open_source(caltech).builder
    image = Image.fromarray(builder.as_data_source(split="train[:1]")[0]["image"])
    scale = 32 / min(image.size)
    width, height = (max(32, round(side * scale)) for side in image.size)
    left, top = (width - 32) // 2, (height - 32) // 2
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((left, top, left + 32, top + 32)))
    images = np.load(next(tmp_path.glob("caltech101*")) / "images.npy")
    np.testing.assert_array_equal(images[0], expected)


# ---------------------------------------------------------------------------- cache


class Grey:
    """A source of a few grey images, whose fingerprint is set by hand."""

    name, class_names = "grey", tuple("abcd")
    superclass_names = ("x", "y")
    image_shape = (4, 5)

    def __init__(self, made="today"):
        self.made, self.decoded, self.splits = made, 0, {"test": self}

    def fingerprint(self, split):
        return [self.made, split]

    def __len__(self):
        return 12

    def __getitem__(self, i):
        self.decoded += 1
        return Example(np.full((4, 5, 1), i, np.uint8), i % 4, i % 4 // 2)


def test_the_cache_is_made_once_and_mapped(tmp_path):
    source = Grey()
    images, labels, superclass_of, _ = cache.decoded(source, "test", 0, tmp_path)
    once = source.decoded
    assert images.shape == (12, 4, 5, 3)  # grey became RGB
    assert (images == np.arange(12).reshape(12, 1, 1, 1)).all()
    assert labels.tolist() == [i % 4 for i in range(12)]
    assert superclass_of == (0, 0, 1, 1)
    again, *_ = cache.decoded(source, "test", 0, tmp_path)
    assert source.decoded == once
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(again, images)


def test_another_source_of_the_same_name_or_other_decoding_does_not_share_the_cache(
    tmp_path, monkeypatch
):
    source, other = Grey(), Grey("yesterday")
    for each in (source, other):
        cache.decoded(each, "test", 0, tmp_path)
    assert other.decoded == source.decoded > 0
    monkeypatch.setattr(cache, "DECODING", -1)
    cache.decoded(source, "test", 0, tmp_path)
    assert source.decoded == 2 * other.decoded


HARM = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:150]), "mmap length"),
    "empty": (lambda path: path.write_bytes(b""), ""),
    "gone": (lambda path: path.unlink(), "No such file"),
    "header": (
        lambda path: path.write_bytes(
            path.read_bytes().replace(b"'fortran_order'", b"fortran({order'")
        ),
        "",
    ),
    "no record": (lambda path: path.with_name("about.json").write_text("[]"), "indices"),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_cache_is_made_again_with_a_line(harm, tmp_path, capsys):
    before = np.array(cache.decoded(Grey(), "test", 0, tmp_path)[0])
    do, reason = HARM[harm]
    do(next(tmp_path.glob("grey-*")) / "images.npy")
    after, *_ = cache.decoded(Grey(), "test", 0, tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if "decoding again" in line]
    assert len(lines) == 1
    assert reason in lines[0]
    np.testing.assert_array_equal(after, before)


def test_a_half_written_cache_is_never_taken_for_a_whole_one(tmp_path):
    cache.decoded(Grey(), "test", 0, tmp_path)
    entry = next(tmp_path.glob("grey-*"))
    entry.rename(entry.with_name(entry.name + ".partial"))
    source = Grey()
    cache.decoded(source, "test", 0, tmp_path)
    assert source.decoded
    assert not list(tmp_path.glob("*.partial"))


def test_a_cache_that_cannot_be_written_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(InputError, match=r"cannot be filled.*free[\s\S]*XDG_CACHE_HOME"):
        cache.decoded(Grey(), "test", 0, tmp_path)


# ---------------------------------------------------------------------------- bad input


def test_many_sizes_without_an_image_size_are_refused(caltech, tmp_path):
    caltech.image_size = 0
    with pytest.raises(InputError, match="image_size"):
        data.load_dataset(caltech, tmp_path)


def test_a_validation_split_as_large_as_the_training_split_is_refused(caltech, tmp_path):
    caltech.val_size = 3060
    with pytest.raises(InputError, match="val_size=3060"):
        data.load_dataset(caltech, tmp_path)


def test_another_number_of_classes_than_the_config_tells_is_refused(caltech, tmp_path):
    caltech.num_classes = 103
    with pytest.raises(InputError, match=r"num_classes=103, but caltech101 has 102 classes"):
        data.load_dataset(caltech, tmp_path)
    digits = default_config().dataset
    digits.num_classes = 11
    with pytest.raises(InputError, match=r"num_classes=11, but digits has 10 classes"):
        data.load_dataset(digits)


def test_a_set_that_is_not_in_the_data_directory_is_refused_with_the_command(tmp_path):
    config = cifar100_resnet18.get_config().dataset
    config.data_dir = str(tmp_path)
    with pytest.raises(InputError, match=f"tfds build cifar100 --data_dir={tmp_path}"):
        data.load_dataset(config, tmp_path / "cache")


def test_without_network_the_error_tells_where_the_set_is_to_go(tmp_path, monkeypatch, capsys):
    """And so does a line before TFDS tries, for it tries for minutes."""
    import tensorflow_datasets as tfds

    def no_network(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
    config = cifar100_resnet18.get_config().dataset
    with pytest.raises(InputError, match=r"no route to host[\s\S]*tfds build cifar100 --data_dir"):
        data.load_dataset(config, tmp_path / "cache")
    assert "tfds build cifar100 --data_dir=DIR" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cifar1000", "CIFAR-100", "cifar 100"])
def test_an_unknown_set_is_refused_with_the_nearest_names(name, tmp_path):
    config = default_config().dataset
    config.update(name=name, data_dir=str(tmp_path))
    with pytest.raises(InputError, match="did you mean 'cifar100'"):
        data.load_dataset(config, tmp_path / "cache")


def test_labels_that_are_held_back_and_splits_that_are_not_there_are_refused(cifar, tmp_path):
    with pytest.raises(InputError, match=r"labels from -1 to -1.*\n?.*test_split=validation"):
        data._check_labels(cifar, np.full(3, -1), 100, "test")
    cifar.test_split = "validation"
    with pytest.raises(InputError, match=r"splits \['test', 'train'\].*test_split"):
        data.load_dataset(cifar, tmp_path)


def test_an_example_that_cannot_be_read_is_named(tmp_path):
    class Broken(Grey):
        def __getitem__(self, index):
            if index == 7:
                raise RuntimeError("Corrupted record")
            return super().__getitem__(index)

    with pytest.raises(InputError, match=r"example 7 of grey cannot be read \(Corrupted record"):
        cache.decoded(Broken(), "test", 0, tmp_path)


@pytest.mark.parametrize("cut", [0, 10, 200])
def test_damaged_arrays_are_named(cut, tmp_path):
    np.savez(tmp_path / "arrays.npz", pooled=np.ones((20, 3)))
    whole = (tmp_path / "arrays.npz").read_bytes()
    (tmp_path / "arrays.npz").write_bytes(whole[:cut])
    with pytest.raises(InputError, match=r"arrays.npz is damaged .*; delete it, and mend it"):
        arrays_in(tmp_path / "arrays.npz", "mend it")
