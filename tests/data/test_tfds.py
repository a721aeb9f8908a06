"""TFDS sets in both formats, and what of them the cache goes by."""

import importlib.util
import json
import os
import shutil
import sys

import numpy as np
import pytest

from configs import cifar100_resnet18
from gini_jax import data
from gini_jax.config.change import default_config
from gini_jax.data import tfds as tfds_source
from gini_jax.errors import InputError


def test_a_validation_split_of_the_set_is_used(monkeypatch):
    """Whichever of its two names it has; not where it is the split that is tested on."""
    from types import SimpleNamespace as Stub

    sizes = {"train": 90, "validation": 7, "test": 20}
    splits = {
        name: Stub(num_examples=size, filepaths=[f"/nowhere/{name}"])
        for name, size in sizes.items()
    }
    features = {"label": Stub(names=["a", "b"]), "image": Stub(shape=(8, 8, 3))}
    info = Stub(features=features, splits=splits, full_name="stub/1.0.0")
    monkeypatch.setattr(tfds_source, "_find", lambda *_: Stub(info=info))
    config = default_config().dataset
    config.name = "stub"
    assert len(data.dataset_shapes(config).splits["val"].labels) == 7
    of_val = data.open_source(config).fingerprint("val")
    assert [path for path, *_ in of_val["files"]] == ["/nowhere/validation"]
    config.val_size = 10
    with pytest.raises(InputError, match="has its own validation split"):
        data.open_source(config)
    config.test_split = "validation"
    shapes = data.dataset_shapes(config).splits
    assert [len(shapes[name].labels) for name in ("train", "val", "test")] == [80, 10, 7]
    splits["val"] = splits.pop("validation")
    config.test_split = "val"
    shapes = data.dataset_shapes(config).splits
    assert [len(shapes[name].labels) for name in ("train", "val", "test")] == [80, 10, 7]
    assert len(data.open_source(config).fingerprint("val")["files"]) == 1


@pytest.fixture
def cifar(shared_tfds):
    config = cifar100_resnet18.get_config().dataset
    config.data_dir = str(shared_tfds)
    return config


def test_tfrecord_without_tensorflow_is_refused_with_both_ways_out(cifar, tmp_path, monkeypatch):
    """A folder that says it holds tfrecord; no record of it is read."""
    there = tmp_path / "cifar100" / "3.0.2"
    shutil.copytree(
        f"{cifar.data_dir}/cifar100/3.0.2",
        there,
        ignore=lambda _, names: [n for n in names if "-of-" in n],
    )
    there.chmod(0o755)
    info = there / "dataset_info.json"
    info.chmod(0o644)
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    tfds_source._find(
        "cifar100", cifar.data_dir, "test"
    )  # TFDS looks for TensorFlow when it is imported
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    cifar.data_dir = str(tmp_path)
    with pytest.raises(InputError, match=r"pip install tensorflow-cpu[\s\S]*tfds build cifar100"):
        data.load_dataset(cifar, tmp_path / "cache")


def toy_set(folder, labels, images, kind="array_record"):
    """A small TFDS set in a folder."""
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=list("abcdef")),
        "coarse_label": tfds.features.ClassLabel(names=list("xyz")),
    }
    examples = [
        (i, {"image": image, "label": int(label), "coarse_label": int(label) // 2})
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="toy",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": examples[:30], "test": examples[30:]},
        data_dir=folder,
        file_format=kind,
        disable_shuffling=True,
    )
    config = default_config().dataset
    config.update(name="toy", data_dir=str(folder), image_size=7, val_size=6)
    return config


def test_tfrecord_and_array_record_give_the_same_arrays(tmp_path):
    """Of a small set made here, with images of two sizes, six classes and three superclasses."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs TensorFlow to write and read tfrecord: pip install tensorflow-cpu")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (10 + i % 2 * 8, 14, 3)).astype(np.uint8) for i in range(42)]
    loaded = []
    for kind in ("array_record", "tfrecord"):
        config = toy_set(tmp_path / kind, np.arange(42) % 6, images, kind)
        loaded.append(data.load_dataset(config, tmp_path / f"cache-{kind}"))
    assert loaded[0].superclass_of == loaded[1].superclass_of == (0, 0, 1, 1, 2, 2)
    assert loaded[0].splits["test"].labels.tolist() == [i % 6 for i in range(12)]
    for name, split in loaded[0].splits.items():
        np.testing.assert_array_equal(split.images, loaded[1].splits[name].images)
        np.testing.assert_array_equal(split.labels, loaded[1].splits[name].labels)


@pytest.fixture
def encoder(monkeypatch):
    """TFDS writes array_record without TensorFlow only where it need not encode images."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs TensorFlow to write a TFDS set: pip install tensorflow-cpu")


def test_a_set_that_was_built_again_with_other_labels_is_decoded_again(encoder, tmp_path):
    images = [np.full((8, 8, 3), i, np.uint8) for i in range(42)]
    config = toy_set(tmp_path / "set", np.arange(42) % 6, images)
    first = data.load_dataset(config, tmp_path / "cache")
    shutil.rmtree(tmp_path / "set")
    toy_set(tmp_path / "set", (np.arange(42) + 1) % 6, images)
    second = data.load_dataset(config, tmp_path / "cache")
    assert (second.splits["test"].labels == (first.splits["test"].labels + 1) % 6).all()


def test_the_fingerprint_of_a_tfds_split_tells_its_files_sizes_and_times(cifar, tmp_path):
    there = shutil.copytree(f"{cifar.data_dir}/cifar100", tmp_path / "cifar100")
    before = data.open_source(cifar).fingerprint("test")
    cifar.data_dir = str(tmp_path)
    elsewhere = data.open_source(cifar).fingerprint("test")
    assert before != elsewhere  # in another folder
    file = next(there.rglob("*test.array_record*"))
    os.utime(file, (1, 1))  # written again
    assert data.open_source(cifar).fingerprint("test") != elsewhere
    assert data.open_source(cifar).fingerprint("train") != elsewhere
