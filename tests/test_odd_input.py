"""Odd but possible: numbers that are none, pictures that cannot be drawn, images of every kind."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import gini_jax
from gini_jax import drawing
from gini_jax.analysis import figures, report
from gini_jax.config.change import set_component
from gini_jax.data.images import decode
from gini_jax.drawing import drawn
from gini_jax.drawing import save as save_picture
from gini_jax.errors import InputError, RunError
from gini_jax.evals.accuracy import metrics
from gini_jax.modes import export as export_mode
from gini_jax.modes import predict as predict_mode
from gini_jax.modes import sweep
from gini_jax.modes.members import members_of
from gini_jax.modes.train import main as train
from gini_jax.storage import csv_text, not_written, write
from gini_jax.training.checkpoints import Checkpoints
from gini_jax.training.checks import check_config
from gini_jax.training.workdir import make_workdir
from tests.conftest import ROOT
from tests.helpers import tiny
from tests.helpers.images import images_config, write_images

ONE = slice(0, 1)


def strict_json(path):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def folder_of(root, train=8, test=4):
    for split, count in (("train", train), ("test", test)):
        for name, shade in (("ant", 10), ("bee", 150)):
            write_images(root / split / name, count, shade, seed=len(split))
    return root


def folder_config(root, **changes):
    return images_config(root, **{"dataset.test_size": 0, "dataset.val_size": 0, **changes})


# ---------------------------------------------------------------------------- pictures


@pytest.mark.slow
def test_a_run_on_equal_test_images_ends_with_its_report(tmp_path, capsys):
    """All features coincide, which ends scikit-learn's t-SNE by a signal."""
    root = folder_of(tmp_path / "images")
    for path in (root / "test").rglob("*.png"):
        Image.new("RGB", (8, 8), (90, 90, 90)).save(path)
    for i in range(20):
        Image.new("RGB", (8, 8), (90, 90, 90)).save(root / "test" / "ant" / f"more{i}.png")
    config = folder_config(root, evals=("all",), report=True, name="pay$$load")
    train(config, tmp_path / "run", devices=jax.devices()[ONE])
    strict_json(tmp_path / "run" / "result.json")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "pay$$load" in page
    assert "could not be drawn" not in capsys.readouterr().err


def run_of(classes, features, names):
    rng = np.random.default_rng(classes)
    labels = np.arange(12) % classes
    profile = rng.dirichlet(np.ones(classes), 6)
    arrays = {
        "profile/stage2": profile,
        "impurity/stage2": 1 - (profile**2).sum(axis=1),
        "confusion": np.eye(classes, dtype=int) * 4,
        "pooled": features,
        "pooled_labels": labels,
        "fired_images": np.zeros((6, 8, 8, 8, 3), np.uint8),
        "fired_features": np.arange(6),
    }
    return SimpleNamespace(
        arrays=arrays,
        layer="stage2",
        num_classes=classes,
        class_names=names,
        groups=np.arange(classes),
        about={"superclass_names": []},
        result={"seed": 0, "best_epoch": 1},
        config={"loss": {"start_epoch": 1, "terms": {}}},
        lines=[{"epoch": 1, "val_loss": 1.0}],
    )


@pytest.mark.slow
def test_pictures_take_dollars_large_numbers_and_sets_of_different_classes():
    features = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    two = run_of(2, 1e6 * features, ["Ba$$in", r"cost_$\alpha$"])
    three = run_of(3, np.zeros((12, 5), np.float32), ["$", "a$b", "$c$"])
    groups = {"ce-data=$x$": [two], "ce-data=y$": [three]}
    for draw in (figures.distribution, figures.impurity, figures.profiles, figures.curves):
        assert drawn(draw, groups)
    assert "<img" in drawn(figures.embedding, groups, pixels=True)
    svg = drawn(figures.confusion, two.arrays["confusion"], two.class_names)
    assert "Ba$$in" in svg and r"cost_$\alpha$" in svg


@pytest.mark.slow
def test_a_picture_that_cannot_be_drawn_is_named_and_left_out(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise ValueError("no such colour")

    root = folder_of(tmp_path / "images")
    monkeypatch.setattr(drawing, "save", save_picture)  # which tests leave out, see conftest.py
    for name in ("curves", "before_and_after", "profiles"):
        monkeypatch.setattr(figures, name, fails)
    config = folder_config(root, report=True)
    train(config, tmp_path / "run", devices=jax.devices()[ONE])
    said = capsys.readouterr().err
    for name in ("curves.png", "impurity.png"):
        assert f"warning: {name} is left out, it could not be drawn (ValueError: no such" in said
    assert (tmp_path / "run" / "result.json").exists()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "This picture is left out: it could not be drawn (ValueError: no such colour)" in page


@pytest.mark.slow
def test_a_test_split_of_two_images_is_enough_for_everything(tmp_path):
    root = folder_of(tmp_path / "images", test=1)
    config = folder_config(root, evals=("all",), report=True)
    result = train(config, tmp_path / "run", devices=jax.devices()[ONE])
    strict_json(tmp_path / "run" / "result.json")
    strict_json(tmp_path / "run" / "dataset.json")
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(word))
    assert result["test_top5"] is None  # of two classes


def test_a_sweep_of_one_objective_speaks_of_means():
    runs = [
        SimpleNamespace(
            result={"seed": seed, "test_accuracy": x, "feature_gini": 0.5, "best_epoch": 1},
            num_classes=2,
        )
        for seed, x in enumerate((1.0, 0.5, 1.0, 0.5))
    ]
    (sentence,) = report._findings({"ce": runs}, {})
    assert "ce reaches a test accuracy of 0.7500 ± 0.2887, the mean over 4 seeds" in sentence


# ---------------------------------------------------------------------------- not a number


def test_weights_that_are_not_finite_end_the_run_and_are_never_saved(tmp_path):
    config = tiny.get_config("ce")
    config.update(num_epochs=1, batch_size=1000)
    set_component(config, "schedule", "constant", learning_rate=1e30)
    config.optimizer.weight_decay = 1e30
    with pytest.raises(RunError, match=r"not finite.*No checkpoint was written.*learning rate"):
        train(config, tmp_path / "run", devices=jax.devices()[ONE])
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_checkpoint_that_is_not_finite_predicts_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state = {"params": {"w": np.array([1.0, np.nan])}, "batch_stats": {}}
    checkpoints.save(3, state, {"best_step": 3})
    checkpoints.wait()
    with pytest.raises(RunError, match=r"weights in checkpoint 3 of .* are not finite"):
        checkpoints.variables(3)
    checkpoints.close()


def test_a_row_of_logits_with_a_nan_is_wrong_in_every_accuracy():
    logits = np.array([[np.nan, np.nan], [0.0, 1.0]])
    found = metrics(logits, np.array([0, 1]))
    assert found["accuracy"] == 0.5
    assert found["class_accuracy"] == 0.5


@pytest.mark.parametrize("seed", [2**32, 2**64, -1])
def test_seeds_are_numbers_of_32_bits(seed):
    config = tiny.get_config()
    config.seed = seed
    with pytest.raises(InputError, match=r"seed=.* must lie in \[0, 4294967295\]"):
        check_config(config, 1)


def test_values_that_would_share_a_folder_are_refused():
    vary = ["dataset.data_dir='a/b','a_b'"]
    with pytest.raises(InputError, match=r"would share the folder ce-dataset\.data_dir=a_b-seed0"):
        members_of(tiny.get_config("ce"), ["ce"], [0], vary)


def test_all_members_are_checked_before_the_first_one_trains(tmp_path):
    config = tiny.get_config("ce")
    config.update(num_epochs=1)
    config.loss.start_epoch = 2
    with pytest.raises(InputError, match="start_epoch=2 lies after the last epoch"):
        sweep.main(config, tmp_path / "sweep", objectives="ce,gini_kl")
    assert not (tmp_path / "sweep" / "ce-seed0").exists()


# ---------------------------------------------------------------------------- places


@pytest.mark.parametrize("name", ["lr[0.1]", "[abc]", "a*", "back\\slash"])
def test_folders_that_would_lose_checkpoints_are_refused_before_training(name, tmp_path):
    for workdir in (tmp_path / name, tmp_path / name / "run"):
        with pytest.raises(InputError, match="checkpoints would be lost in a folder with"):
            train(tiny.get_config("ce"), workdir)
    assert not (tmp_path / name).exists()
    with pytest.raises(InputError, match="checkpoints would be lost"):
        Checkpoints(tmp_path / name)


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "a\\b"])
def test_a_name_that_leads_elsewhere_is_refused(name):
    config = tiny.get_config()
    config.name = name
    with pytest.raises(InputError, match="must be the name of a folder"):
        check_config(config, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = folder_of(tmp_path_factory.mktemp("odd") / "images")
    workdir = root.parent / "run"
    train(folder_config(root, num_epochs=2), workdir, devices=jax.devices()[ONE])
    return workdir


def test_a_run_that_one_may_only_read_says_so_before_any_work(run, tmp_path, monkeypatch):
    real, png = os.open, tmp_path / "new.png"
    Image.new("RGB", (8, 8)).save(png)

    def open_(path, flags, *rest, **kwargs):
        if str(path).startswith(str(run)) and flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *rest, **kwargs)

    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    for mode, options in ((predict_mode, {"images": str(png)}), (export_mode, {})):
        with pytest.raises(InputError, match=r"cannot be written \(Permission denied\); .*"):
            mode.main(None, run, **options)
    with pytest.raises(InputError, match="cannot be written"):
        make_workdir(run)
    text = str(not_written(run / "x", PermissionError(13, "Permission denied")))
    assert "permissions" in text and "MiB" not in text


# ---------------------------------------------------------------------------- images in predict


def test_arrays_of_every_library_and_kind_are_images(run):
    torch = pytest.importorskip("torch", reason="predicts a tensor of PyTorch")
    trained = gini_jax.load(run)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    opaque = np.concatenate([pixels, np.full((8, 8, 1), 255, np.uint8)], axis=-1)
    expected = trained.predict([pixels]).probabilities
    kinds = [jnp.asarray(pixels), torch.from_numpy(pixels), opaque, pixels.astype(np.float32) / 255]
    for image in kinds:
        np.testing.assert_allclose(trained.predict([image]).probabilities, expected, atol=1e-6)
    several = trained.predict(image for image in [pixels, pixels]).probabilities
    np.testing.assert_allclose(several, expected.repeat(2, 0), atol=1e-6)
    with pytest.raises(InputError, match=r"shape \(3, 8, 8\).*channels last"):
        trained.predict([torch.from_numpy(pixels).permute(2, 0, 1)])
    with pytest.raises(InputError, match="images is empty"):
        trained.predict([])


def test_features_of_a_chosen_layer_alone(run):
    trained = gini_jax.load(run)
    images = np.zeros((3, 8, 8, 3), np.uint8)
    everything = trained.features(images)
    (chosen,) = trained.features(images, layers=["pooled"]).items()
    assert chosen[0] == "pooled"
    np.testing.assert_array_equal(chosen[1], everything["pooled"])
    with pytest.raises(InputError, match="unknown layer 'stage3'"):
        trained.features(images, layers=["stage3"])


def values_of(array, kind="TIFF"):
    import io

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return decode(buffer.getvalue())[0, 0].tolist()


def test_numbers_of_every_type_become_8_bits():
    assert decode(np.ones((2, 2), bool))[0, 0].tolist() == [255, 255, 255]
    holey = np.array([[0.5, np.nan], [1.0, 0.0]], np.float32)
    assert values_of(holey)[0] == 128
    for order in ("<u2", ">u2"):
        for value in (20, 8000, 65535):
            array = np.full((2, 2), value, order)
            assert decode(array)[0, 0, 0] == round(value / 257)
            big = Image.frombytes("I;16B" if order[0] == ">" else "I;16", (2, 2), array.tobytes())
            assert decode(big)[0, 0, 0] == round(value / 257)
    with pytest.raises(ValueError, match="must be numbers"):
        decode(np.array([["a"]]))


def test_files_that_cannot_be_read_are_counted_and_the_others_are_predicted(
    run, tmp_path, capsys, monkeypatch
):
    good = np.random.default_rng(1).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(good).save(tmp_path / "scan[1].png")
    Image.fromarray(good).save(tmp_path / "=cmd.png")
    Image.fromarray(good).save(os.fsencode(tmp_path) + b"/\xff.png", "PNG")
    (tmp_path / "folder").mkdir()
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    for name in ("a.gif", "b.avif", "c.blp", "d.png"):
        (tmp_path / name).write_bytes(
            b"BLP2" + bytes(200) if name == "c.blp" else b"GIF89a\xff\xff"
        )
    table = predict_mode.main(None, run, images=str(tmp_path / "**" / "*"))
    said = capsys.readouterr()
    assert "3 predictions written" in said.out and "; 5 files left out" in said.out
    assert said.err.count("cannot be read as an image") == 5
    assert len(table) == 3
    top = json.loads(table["top5"][0])
    assert top[0] == [table["class"][0], pytest.approx(table["probability"][0], abs=1e-6)]
    monkeypatch.setattr(predict_mode, "MANY", 2)  # the same in processes
    pd.testing.assert_frame_equal(
        predict_mode.main(None, run, images=str(tmp_path / "**" / "*")), table
    )
    assert capsys.readouterr().err.count("cannot be read as an image") == 5
    (row,) = predict_mode.main(None, run, images=str(tmp_path / "scan[1].png"))["image"]
    assert row.endswith("scan[1].png")
    with pytest.raises(InputError, match="none of the 1 files is a readable image"):
        predict_mode.main(None, run, images=str(tmp_path / "d.png"))


def test_texts_that_a_spreadsheet_would_compute_are_quoted(tmp_path):
    table = pd.DataFrame({"class": ["=1+1", "+a", "-a", "@a", "a"], "p": [-1.0, 2, 3, 4, 5]})
    lines = csv_text(table).splitlines()
    assert lines[1:] == ["'=1+1,-1.0", "'+a,2.0", "'-a,3.0", "'@a,4.0", "a,5.0"]
    write(tmp_path / "x.html", "\udcff")
    assert (tmp_path / "x.html").read_text() == "\\udcff"


MEASURE = """
import resource, sys
import numpy as np
import gini_jax
trained = gini_jax.load(sys.argv[1])
def images(n):
    rng = np.random.default_rng(0)
    for _ in range(n):
        yield rng.integers(0, 256, (96, 96, 3)).astype(np.uint8)
trained.predict(images(300), batch_size=64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert trained.predict(images(3000), batch_size=64).probabilities.shape == (3000, 2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_ten_times_the_images_take_no_more_memory(run):
    """3,000 images of 96 pixels are 79 MiB, and their features in this network 105 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(run)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert int(done.stdout) < 30 * 1024  # KiB


def test_a_run_before_its_first_validation_is_loaded_at_its_newest_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state = {"params": {"w": np.ones(2)}, "batch_stats": {}}
    for step in (5, 6):
        checkpoints.save(step, state, {"best_step": 0})
    checkpoints.wait()
    assert checkpoints.best_step() == 6
    checkpoints.close()
