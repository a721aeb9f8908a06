"""What may lie in a folder of images: every image is used, or said to be left out."""

import os

import numpy as np
import pytest
from PIL import Image

from gini_jax.data import load_dataset
from gini_jax.errors import InputError
from gini_jax.storage import default_folder
from tests.helpers.images import images_config, write_images


def folder_of(root, *splits, count=4):
    for split in splits:
        for name, shade in (("ant", 10), ("bee", 150)):
            write_images(root / split / name, count, shade, seed=len(split))
    return root


def loaded(root, tmp_path, **changes):
    config = images_config(root).dataset
    config.update({"test_size": 0, "val_size": 0, **changes})
    return load_dataset(config, tmp_path / "cache")


def sizes(dataset):
    return {name: len(split.labels) for name, split in dataset.splits.items()}


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "dev"])
def test_a_validation_folder_is_found_under_its_usual_names(name, tmp_path):
    root = folder_of(tmp_path / "x", "train", "test", name)
    assert sizes(loaded(root, tmp_path)) == {"train": 8, "val": 8, "test": 8}
    tested = loaded(folder_of(tmp_path / "y", "train", name), tmp_path, test_split=name)
    assert sizes(tested) == {"train": 8, "val": 0, "test": 8}


def test_names_of_splits_may_be_capitals(tmp_path):
    root = folder_of(tmp_path / "x", "Train", "Test")
    found = loaded(root, tmp_path)
    assert found.class_names == ("ant", "bee")
    assert sizes(found) == {"train": 8, "val": 0, "test": 8}


def test_two_validation_folders_are_refused_and_other_folders_are_said(tmp_path, capsys):
    root = folder_of(tmp_path / "x", "train", "test", "val", "dev")
    with pytest.raises(InputError, match="dev/ and val/, and both could be the val split"):
        loaded(root, tmp_path)
    loaded(folder_of(tmp_path / "y", "train", "test", "more"), tmp_path)
    assert "left out, because they are no split: more" in capsys.readouterr().out


def test_links_to_folders_are_followed_once(tmp_path):
    root = folder_of(tmp_path / "x", "train", "test")
    write_images(tmp_path / "elsewhere", 3, 10, seed=9)
    (root / "train" / "ant" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "elsewhere")
    assert sizes(loaded(root, tmp_path))["train"] == 11


def test_links_that_lead_nowhere_are_named(tmp_path, capsys):
    root = folder_of(tmp_path / "x", "train", "test")
    (root / "train" / "ant" / "gone.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"gone\.png is a link that leads nowhere.*skip_damaged"):
        loaded(root, tmp_path)
    assert sizes(loaded(root, tmp_path, skip_damaged=True))["train"] == 8
    assert "1 links that lead nowhere" in capsys.readouterr().out


def test_what_is_no_image_of_a_class_is_said_to_be_left_out(tmp_path, capsys):
    root = folder_of(tmp_path / "x", "train", "test")
    Image.new("RGB", (8, 8)).save(root / "train" / "beside.png")
    (root / "train" / "ant" / "photo.heic").write_bytes(b"-")
    loaded(root, tmp_path)
    said = capsys.readouterr().out
    assert "train: 2 classes with their images: ant 4, bee 4" in said
    assert "1 images beside the class folders, such as beside.png; 1 files .heic" in said


def test_a_class_or_a_split_of_damaged_images_alone_is_refused(tmp_path):
    root = folder_of(tmp_path / "x", "train", "test")
    for path in (root / "train" / "ant").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"no training images of \['ant'\] that can be read"):
        loaded(root, tmp_path, skip_damaged=True)
    root = folder_of(tmp_path / "y", "train", "test")
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="no test images that can be read"):
        loaded(root, tmp_path, skip_damaged=True)


def test_one_size_of_all_images_is_taken(tmp_path, capsys):
    root = folder_of(tmp_path / "x", "train", "test")
    assert loaded(root, tmp_path).image_size == 8
    assert "all images are 8 x 8, which is taken as image_size" in capsys.readouterr().out
    Image.new("RGB", (9, 8)).save(root / "train" / "ant" / "wide.png")
    with pytest.raises(InputError, match=r"not have one size.*dataset\.image_size"):
        loaded(root, tmp_path)


def test_names_that_are_not_utf8_become_text(tmp_path):
    root = folder_of(tmp_path / "x", "train", "test")
    for split in ("train", "test"):
        os.rename(root / split / "ant", os.fsencode(root / split) + b"/\xff")
    found = loaded(root, tmp_path)
    assert found.class_names == ("bee", "\\xff")
    assert sizes(found)["train"] == 8


def test_paths_of_any_length_have_a_place_in_the_cache(tmp_path):
    root = tmp_path / ("x" * 240)
    folder_of(root, "train", "test")
    assert sizes(loaded(root, tmp_path))["train"] == 8


def test_fewer_training_images_than_classes_are_refused(tmp_path):
    root = folder_of(tmp_path / "x", "train", "test")
    with pytest.raises(InputError, match=r"train_size=1 leaves some of the 2 classes.*size=2"):
        loaded(root, tmp_path, train_size=1)


def test_the_cache_has_a_place_without_a_home(tmp_path, monkeypatch):
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert default_folder() == tmp_path / ".cache" / "gini_jax"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert default_folder().is_absolute()
    assert default_folder().name == f"gini_jax-{os.getuid()}"
    np.testing.assert_equal(default_folder(), default_folder())
