"""Fashion-MNIST from its authors' files: small ones made here, and the whole set where it is."""

import gzip
import hashlib

import numpy as np
import pytest

from gini_jax.config.change import default_config
from gini_jax.data import load_dataset, open_source
from gini_jax.data.fashion_mnist import INSTALLED, NAMES
from gini_jax.errors import InputError


def idx(array):
    """The IDX format, as its authors describe it."""
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.astype(np.uint8).tobytes()


def dataset_of(folder):
    config = default_config().dataset
    config.update(name="fashion_mnist", data_dir=str(folder), val_size=10)
    return config


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for start, count in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count) % 10
        for name, array in ((f"{start}-images-idx3", images), (f"{start}-labels-idx1", labels)):
            (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    return tmp_path


def test_images_and_labels_are_those_of_the_files(folder, tmp_path_factory):
    dataset = load_dataset(dataset_of(folder), tmp_path_factory.mktemp("cache"))
    assert {name: len(split.labels) for name, split in dataset.splits.items()} == {
        "train": 30,
        "val": 10,
        "test": 20,
    }
    content = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    expected = np.frombuffer(content[16:], np.uint8).reshape(20, 28, 28)
    np.testing.assert_array_equal(np.asarray(dataset.splits["test"].images)[..., 1], expected)
    np.testing.assert_array_equal(dataset.splits["test"].labels, np.arange(20) % 10)
    assert dataset.class_names == NAMES


def test_files_that_are_missing_or_damaged_are_named(folder, tmp_path):
    with pytest.raises(InputError, match=r"(?s)nowhere.*apt-get install dataset-"):
        open_source(dataset_of(tmp_path / "nowhere"))
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte\.gz cannot be read"):
        open_source(dataset_of(folder))
    config = dataset_of(folder)
    config.image_size = 32
    with pytest.raises(InputError, match=r"image_size=32.*leave both out"):
        open_source(config)


def test_the_whole_set_has_6000_images_of_each_class():
    if not INSTALLED.is_dir():
        pytest.skip(f"needs Debian's dataset-fashion-mnist in {INSTALLED}, which is not there")
    source = open_source(dataset_of(""))
    labels = np.array([example.label for example in source.splits["train"]])
    np.testing.assert_array_equal(np.bincount(labels), 6000)
    assert len(source.splits["test"]) == 10_000
    assert len({hashlib.sha256(x.image.tobytes()).digest() for x in source.splits["test"]}) > 9_900
