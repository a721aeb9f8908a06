"""Sets of the library `datasets`, written and read on this machine."""

import numpy as np
import pytest
from PIL import Image

from gini_jax.config.change import default_config
from gini_jax.data import load_dataset, open_source
from gini_jax.errors import InputError

datasets = pytest.importorskip("datasets", reason="reads hf: sets, which needs datasets")

LABELS = [0, 1, 2, 1] * 6
PIXELS = [np.full((4, 4, 3), 10 * i, np.uint8) for i in range(24)]


def a_set(**columns):
    images = [Image.fromarray(pixels) for pixels in PIXELS]
    features = {"img": datasets.Image()}
    for name, values in columns.items():
        is_class = isinstance(values[0], int)
        names = datasets.ClassLabel(names=["ant", "bee", "cat"])
        features[name] = names if is_class else datasets.Value("string")
    return datasets.Dataset.from_dict(
        {"img": images, **columns}, features=datasets.Features(features)
    )


def hf_config(path, **changes):
    config = default_config().dataset
    config.update({"name": f"hf:{path}", "test_size": 0, "val_size": 0, "image_size": 4})
    config.update(changes)
    return config


def test_a_saved_set_gives_its_pixels_labels_and_names(tmp_path):
    parts = {"train": a_set(fine=LABELS), "validation": a_set(fine=LABELS).select(range(5))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    config = hf_config(tmp_path / "set", test_split="validation")
    found = load_dataset(config, tmp_path / "cache")
    assert found.class_names == ("ant", "bee", "cat")
    train, test = found.splits["train"], found.splits["test"]
    assert [int(image.min()) for image in train.images] == list(range(0, 240, 10))
    assert [int(image.max()) for image in train.images] == list(range(0, 240, 10))
    assert train.labels.tolist() == LABELS and test.labels.tolist() == LABELS[:5]
    again = load_dataset(config, tmp_path / "cache")  # mapped from the cache this time
    assert [int(image[0, 0, 0]) for image in again.splits["test"].images] == [0, 10, 20, 30, 40]


def test_a_set_without_a_test_split_is_divided_class_by_class(tmp_path):
    a_set(species=[("bee", "ant", "cat")[k] for k in LABELS]).save_to_disk(tmp_path / "set")
    config = hf_config(tmp_path / "set", test_size=8, val_size=4, label_column="species")
    found = load_dataset(config, tmp_path / "cache")
    assert found.class_names == ("ant", "bee", "cat")
    seen = []
    for name, size in (("train", 12), ("val", 4), ("test", 8)):
        images, labels = found.splits[name]
        rows = [int(image[0, 0, 0]) // 10 for image in images]
        assert len(rows) == size
        assert labels.tolist() == [(1, 0, 2)[LABELS[i]] for i in rows]
        seen += rows
    assert sorted(seen) == list(range(24))


def test_a_validation_split_stays_where_the_test_split_is_divided_off(tmp_path):
    parts = {"train": a_set(fine=LABELS), "validation": a_set(fine=LABELS)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    splits = open_source(hf_config(tmp_path / "set", test_size=8)).splits
    assert {name: len(splits[name]) for name in ("train", "val", "test")} == {
        "train": 16,
        "val": 24,
        "test": 8,
    }


def test_a_validation_split_of_the_set_is_used(tmp_path):
    parts = {name: a_set(fine=LABELS) for name in ("train", "validation", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    assert len(open_source(hf_config(tmp_path / "set")).splits["val"]) == 24
    for key, kind in (("val_size", "validation"), ("test_size", "test")):
        with pytest.raises(InputError, match=f"has its own {kind} split"):
            open_source(hf_config(tmp_path / "set", **{key: 3}))


def test_what_cannot_be_read_ends_in_one_error(tmp_path):
    a_set(fine=LABELS, coarse=LABELS).save_to_disk(tmp_path / "two")
    with pytest.raises(InputError, match=r"2 that could be the label.*label_column"):
        open_source(hf_config(tmp_path / "two"))
    found = open_source(hf_config(tmp_path / "two", label_column="coarse", test_size=4))
    assert len(found.splits["train"]) == 20
    with pytest.raises(InputError, match=r"has \['img', 'fine', 'coarse'\]"):
        open_source(hf_config(tmp_path / "two", label_column="species"))
    with pytest.raises(InputError, match=r"dataset\.name=hf: names no set"):
        open_source(hf_config(""))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cannot be opened"):
        open_source(hf_config(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"24 training images and no split 'test'.*such as 4"):
        open_source(hf_config(tmp_path / "two", label_column="fine", test_size=24))
    assert len(open_source(hf_config(tmp_path / "two", label_column="fine")).splits["test"]) == 4
    names = [("ant", "bee", "cat")[k] for k in LABELS]
    parts = {"train": a_set(kind=names), "test": a_set(kind=["dog", *names[1:]])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "other")
    with pytest.raises(InputError, match=r"split test .* has labels \['dog'\] that train lacks"):
        open_source(hf_config(tmp_path / "other", label_column="kind"))


def test_splits_that_number_the_same_classes_otherwise_are_matched_by_name(tmp_path):
    names = ["cat", "ant", "bee"]
    features = datasets.Features(
        {"img": datasets.Image(), "fine": datasets.ClassLabel(names=names)}
    )
    images = [Image.fromarray(pixels) for pixels in PIXELS]
    turned = [names.index(("ant", "bee", "cat")[k]) for k in LABELS]
    test = datasets.Dataset.from_dict({"img": images, "fine": turned}, features=features)
    datasets.DatasetDict({"train": a_set(fine=LABELS), "test": test}).save_to_disk(tmp_path / "set")
    found = load_dataset(hf_config(tmp_path / "set"), tmp_path / "cache")
    assert found.splits["test"].labels.tolist() == found.splits["train"].labels.tolist() == LABELS


def test_labels_that_are_lists_are_refused(tmp_path):
    images = [Image.fromarray(pixels) for pixels in PIXELS]
    several = datasets.Dataset.from_dict({"image": images, "label": [[k, 0] for k in LABELS]})
    several = several.cast_column("image", datasets.Image())
    several.save_to_disk(tmp_path / "set")
    with pytest.raises(InputError, match=r"column 'label' .* holds lists"):
        open_source(hf_config(tmp_path / "set", label_column="label", test_size=4))
