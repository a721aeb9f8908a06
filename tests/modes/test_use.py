"""Own images in, a trained network out: from a folder of files to predictions and exports."""

import json
import re
from types import SimpleNamespace

import jax
import jax.export
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import gini_jax
from gini_jax.config.change import default_config, set_model
from gini_jax.data import load_dataset
from gini_jax.errors import InputError
from gini_jax.models import create_model, from_torch, to_torch
from gini_jax.models.registry import MODELS
from gini_jax.modes import embed as embed_mode
from gini_jax.modes import export as export_mode
from gini_jax.modes import predict as predict_mode
from gini_jax.modes.export import FORMATS
from gini_jax.modes.onnx import INSTALL
from gini_jax.modes.train import main as train
from tests.conftest import ROOT
from tests.helpers import tiny
from tests.helpers.torch_networks import (
    random_images,
    relative_error,
    torch_cvt,
    torch_logits,
    torch_resnet,
)

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (230, 40, 40)}
MODES = ("RGB", "P", "RGBA", "CMYK", "RGB", "RGB")


def writerandom_images(folder, count, rng):
    """Images of each class in many modes, sizes and formats."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            height, width = rng.integers(10, 40, 2)
            pixels = np.clip(np.array(colour) + rng.normal(0, 30, (height, width, 3)), 0, 255)
            image = Image.fromarray(pixels.astype(np.uint8)).convert(MODES[i % len(MODES)])
            ending = ("png", "png", "png", "jpg", "webp", "bmp")[i % len(MODES)]
            image.save(folder / name / f"{i:02}.{ending}")
    (folder / "red" / ".hidden.png").write_bytes(b"not looked at")
    (folder / "red" / "notes.txt").write_text("not looked at")
    (folder / "red" / ".checkpoints").mkdir()
    (folder / "red" / ".checkpoints" / "00.png").write_bytes(b"not looked at")


def folder_config(root):
    config = tiny.get_config("gini_kl")
    config.dataset.update(
        name="folder", data_dir=str(root), image_size=8, num_classes=3, test_size=0
    )
    config.update(batch_size=12, num_epochs=3)
    return config


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 6), ("test", 12)):
        writerandom_images(root / split, count, rng)
    return root


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return train(folder_config(images), workdir, devices=jax.devices()[:1]), workdir


def test_a_folder_of_class_folders_is_a_data_set(run):
    result, workdir = run
    about = json.loads((workdir / "dataset.json").read_text())
    assert about["class_names"] == ["blue", "green", "red"]
    assert about["examples"] == {"train": 72, "val": 18, "test": 36}
    assert result["test_accuracy"] > 0.9


def test_class_folders_alone_are_split_class_by_class(tmp_path, capsys):
    writerandom_images(tmp_path / "images", 20, np.random.default_rng(1))
    config = folder_config(tmp_path / "images").dataset
    splits = load_dataset(config, tmp_path / "cache").splits
    assert np.bincount(splits["test"].labels).tolist() == [4] * 3  # a fifth
    assert "12 of its 60 images are one; --config.dataset.test_size=N" in capsys.readouterr().out
    config.update(test_size=12, val_size=6)
    splits = load_dataset(config, tmp_path / "cache").splits
    counts = {name: np.bincount(split.labels).tolist() for name, split in splits.items()}
    assert counts == {"train": [14] * 3, "val": [2] * 3, "test": [4] * 3}
    config.update(test_size=13, val_size=34)  # more for validation than is left for training
    splits = load_dataset(config, tmp_path / "cache").splits
    sizes = {name: len(split.labels) for name, split in splits.items()}
    assert sizes == {"train": 13, "val": 34, "test": 13}


def test_sizes_that_the_folders_own_splits_would_replace_are_refused(images):
    for key, kind in (("test_size", "test"), ("val_size", "validation")):
        config = folder_config(images).dataset
        config[key] = 6
        with pytest.raises(InputError, match=f"has its own {kind} split; set --config.dataset"):
            load_dataset(config)


def test_a_damaged_image_is_named_or_skipped(tmp_path, capsys):
    writerandom_images(tmp_path / "train", 6, np.random.default_rng(2))
    writerandom_images(tmp_path / "test", 6, np.random.default_rng(3))
    damaged = tmp_path / "train" / "green" / "00.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    config = folder_config(tmp_path).dataset
    with pytest.raises(InputError, match=r"green/00\.png, cannot be read.*skip_damaged=True"):
        load_dataset(config, tmp_path / "cache")
    config.skip_damaged = True
    splits = load_dataset(config, tmp_path / "cache").splits
    assert len(splits["train"].labels) == 17
    assert "train: 1 damaged images skipped" in capsys.readouterr().out


def with_an_empty_class(root):
    writerandom_images(root, 6, np.random.default_rng(4))
    (root / "yellow").mkdir()
    return root


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (lambda root: root / "nowhere", "is not a folder"),
        (lambda root: (root / "red").mkdir(parents=True) or root, "1 class folders"),
        (with_an_empty_class, r"no training images of \['yellow'\]"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused(break_it, text, tmp_path):
    config = folder_config(break_it(tmp_path)).dataset
    config.test_size = 6
    with pytest.raises(InputError, match=text):
        load_dataset(config, tmp_path / "cache")


def test_predict_names_the_classes_of_files(run, images):
    _, workdir = run
    table = predict_mode.main(None, workdir, images=str(images / "test" / "*" / "*.*g*"))
    written = pd.read_csv(workdir / "predictions.csv")
    pd.testing.assert_frame_equal(written, table, check_dtype=False)
    truth = [path.split("/")[-2] for path in table["image"]]
    assert np.mean(table["class"] == truth) > 0.9
    with pytest.raises(InputError, match="matches no file"):
        predict_mode.main(None, workdir, images=str(images / "none" / "*.png"))
    with pytest.raises(InputError, match=r"/red is a folder; give '.*/red/\*'"):
        predict_mode.main(None, workdir, images=str(images / "test" / "red"))
    with pytest.raises(InputError, match=r"needs --images"):
        predict_mode.main(None, workdir)


def test_embed_writes_the_features_of_files_and_shows_the_nearest(run, images, tmp_path):
    trained, pattern = gini_jax.load(run[1]), str(images / "test" / "*" / "0*.*g*")
    like = str(images / "train" / "red" / "00.png")
    table = embed_mode.main(None, run[1], images=pattern, like=like, top=5)
    written = pd.read_parquet(run[1] / "embeddings.parquet")
    assert list(written["image"]) == list(table["image"])
    vectors = np.stack(written["vector"])
    expected = trained.features(list(table["image"]), layers=["pooled"])["pooled"]
    np.testing.assert_array_equal(vectors, expected)
    query = trained.features(like, layers=["pooled"])["pooled"][0].astype(np.float64)
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    page = (run[1] / "nearest.html").read_text()
    shown = re.findall(r"<figcaption>([\d.]+)<br>(.*?)</figcaption>", page)
    order = np.argsort(-cosines, kind="stable")[:5]
    assert [path for _, path in shown] == [table["image"][i] for i in order]
    assert [float(value) for value, _ in shown] == pytest.approx(cosines[order], abs=6e-4)


def test_embed_knows_the_classes_of_splits_and_averages_a_layer_over_space(run):
    trained = gini_jax.load(run[1])
    table = embed_mode.main(None, run[1], splits="val, test", layer="stage1")
    assert table["image"].tolist()[:2] == ["val[0]", "val[1]"]
    assert table["class"].value_counts().to_dict() == {"blue": 18, "green": 18, "red": 18}
    test = load_dataset(trained.config.dataset).splits["test"]
    expected = trained._features(np.asarray(test.images), ("stage1",))["stage1"].mean(axis=(1, 2))
    np.testing.assert_allclose(np.stack(table["vector"][18:]), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "neither is given: give --images=PATTERN, or --splits=train,test"),
        ({"images": "x.png", "splits": "test"}, "both are given"),
        ({"splits": "tets"}, "did you mean 'test'"),
        ({"splits": "test", "layer": "poled"}, "did you mean 'pooled'"),
        ({"splits": "test", "top": 0}, "--top=0; it must be a positive number"),
        ({"splits": "test", "like": "none.png"}, "--like=none.png matches no file"),
        ({"images": "none/*.png"}, "--images=none/.* matches no file"),
    ],
)
def test_what_cannot_be_embedded_is_refused(run, given, text):
    with pytest.raises(InputError, match=text):
        embed_mode.main(None, run[1], **given)


def test_load_gives_what_training_tested(run, images):
    result, workdir = run
    trained = gini_jax.load(workdir)
    test = load_dataset(folder_config(images).dataset).splits["test"]
    prediction = trained.predict(np.asarray(test.images))
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1, rtol=1e-5)
    right = prediction.probabilities.argmax(axis=1) == test.labels
    assert right.mean() == pytest.approx(result["test_accuracy"])
    path = next((images / "test" / "red").glob("0*.png"))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(*(trained.predict([x]).probabilities for x in (path, opened)))
    assert repr(trained) == (
        f"Trained(tiny:gini_kl, seed 0, step {trained.step}: ResNet, 3 classes, images of 8x8)"
    )
    last = gini_jax.load(workdir, step=18)
    assert last.step == 18
    with pytest.raises(InputError, match="must be"):
        trained.predict(np.zeros((2, 8, 8, 3)))


def test_stablehlo_computes_the_same_for_any_batch(run):
    _, workdir = run
    path = export_mode.main(None, workdir, format="stablehlo")
    assert "torchvision" not in (path.parent / "model.stablehlo.md").read_text()  # it is whole
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    trained = gini_jax.load(workdir)
    for n in (1, 5):
        images = np.random.default_rng(n).uniform(size=(n, 8, 8, 3)).astype(np.float32)
        expected = trained.model.apply(trained.variables, images, train=False)[0]
        np.testing.assert_allclose(program.call(images), expected, rtol=1e-4, atol=1e-5)
    assert "Licence: (to be filled in" in (path.parent / "README.md").read_text()
    trained.config.dataset.mean = trained.config.dataset.std = ("imagenet",)
    card = export_mode.model_card(trained, "model.safetensors", {})
    assert "Subtract (0.485, 0.456, 0.406) by channel, and divide by (0.229, 0.224, 0.225)" in card
    card = export_mode.model_card(trained, "model.stablehlo", {}, kind="network")
    assert "The file subtracts (0.485, 0.456, 0.406)" in card
    with pytest.raises(InputError, match="did you mean 'stablehlo'"):
        export_mode.main(None, workdir, format="stablhlo")


@pytest.mark.parametrize("format", ["onnx", "onnx_logits"])
def test_onnx_computes_the_same_for_any_batch(run, format):
    """Against flax; the file is not compared with what it was converted from alone."""
    pytest.importorskip("jax2onnx", reason="converts to ONNX with jax2onnx, which is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="is not installed")
    _, workdir = run
    path = export_mode.main(None, workdir, format=format)
    session = onnxruntime.InferenceSession(str(path))
    trained = gini_jax.load(workdir)
    for n in (1, 5):
        images = np.random.default_rng(n).integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
        pixels = images.astype(np.float32) / 255
        expected = trained.model.apply(trained.variables, pixels, train=False)[0]
        given = images if format == "onnx" else pixels
        (found,) = session.run(None, {"images": given})
        if format == "onnx":
            expected = jax.nn.softmax(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map["classes"] == "blue\ngreen\nred"
    card = (path.parent / f"{path.name}.md").read_text()
    assert ("uint8" in card) == ("Pixels stay" in card) == (format == "onnx")


def test_without_jax2onnx_the_command_that_installs_it_is_named(run, monkeypatch):
    monkeypatch.setattr("gini_jax.modes.onnx.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps jax2onnx==0\.17\.1 onnx"):
        export_mode.main(None, run[1], format="onnx")
    assert INSTALL in (ROOT / "docs" / "training.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_network_is_converted_to_onnx(name, tmp_path):
    pytest.importorskip("jax2onnx", reason="converts to ONNX with jax2onnx, which is not installed")
    config, size = default_config("ce"), 8 if "digits" in name else 32
    small = {"widths": (8, 8, 8), "heads": (1, 1, 2)} if "cvt" in name else {}
    small = {"width": 8} if "resnet" in name else small
    set_model(config, name, **small)
    model = create_model(name, 3, **small)
    made = jax.jit(model.init)(jax.random.key(0), np.zeros((1, size, size, 3), np.float32))
    variables = {k: v for k, v in made.items() if k != "perturbations"}
    trained = gini_jax.trained.Trained(model, variables, config, ("a", "b", "c"), size, 1)
    assert len(FORMATS.find("onnx").data(trained)) > 1000  # compared in onnxruntime as it is made


def test_exported_weights_come_back(run, capsys):
    from safetensors.numpy import load_file

    result, workdir = run
    path = export_mode.main(None, workdir, format="safetensors")
    said = capsys.readouterr().out
    for note in (
        "activation=silu, torchvision's has relu",
        "stem=cifar, torchvision's has imagenet",
    ):
        assert f"this network has {note}: change it there" in said
    tested = f"| test_accuracy | {result['test_accuracy']:.4f} |"
    card = (path.parent / "model.safetensors.md").read_text()
    assert note in card
    assert tested in card
    trained = gini_jax.load(workdir)
    steps = (int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
    other = next(step for step in steps if step != trained.step)
    export_mode.main(None, workdir, format="safetensors", step=other)
    card = (path.parent / "model.safetensors.md").read_text()
    assert f"checkpoint of step {other}" in card
    assert "| not tested |" in card
    export_mode.main(None, workdir, format="safetensors")
    again = from_torch("resnet_digits", load_file(path))
    jax.tree.map(np.testing.assert_array_equal, again, jax.device_get(trained.variables))


def test_a_program_used_as_its_card_says_gives_the_probabilities_of_predict(run):
    """Two cards stand side by side, each with what its own file takes."""
    _, workdir = run
    path = export_mode.main(None, workdir, format="stablehlo")
    export_mode.main(None, workdir, format="safetensors")
    cards = (path.parent / "README.md").read_text()
    for part in ("`model.stablehlo`", "`model.safetensors`", "`[N, 8, 8, 3]`", "`[N, 3, 8, 8]`"):
        assert part in cards
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    trained = gini_jax.load(workdir)
    assert "resize its shorter side to 9" in cards  # of 8 pixels, and a seventh
    resized = Image.fromarray(pixels).resize((12, 9), Image.Resampling.BILINEAR)
    seen = np.asarray(resized)[:8, 1:9][None] / np.float32(255)
    logits = jax.export.deserialize(bytearray(path.read_bytes())).call(seen)
    expected = trained.predict([pixels]).probabilities
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, atol=1e-5)


def test_what_weights_do_not_show_is_said():
    """MobileNetV2 as torchvision has it needs no note; with other padding it does."""
    for settings, keys in (({}, []), ({"padding": "same", "activation": "relu"}, ["act", "pad"])):
        model = create_model("mobilenet_v2", 2, **settings)
        config = default_config("ce")
        set_model(config, "mobilenet_v2")
        trained = SimpleNamespace(model=model, config=config)
        notes = export_mode._unlike_the_original(trained)
        assert [note.partition("has ")[2][:3] for note in notes] == keys


@pytest.mark.parametrize(
    "name",
    ["resnet18", *(pytest.param(x, marks=pytest.mark.slow) for x in ("resnet50", "cvt13"))],
)
def test_pytorchs_networks_load_exported_weights_and_give_the_same_logits(name):
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

    if name == "cvt13":
        pytest.importorskip("transformers", reason="compares with transformers' CvT")
        settings, net = {"activation": "gelu"}, torch_cvt("cvt13")
    else:
        settings, net = {"width": 16}, torch_resnet(name, "cifar")
    model = create_model(name, 10, **settings)
    variables = from_torch(name, net.state_dict(), **settings)
    for parameter in net.parameters():  # so that what is loaded next is what counts
        parameter.data.zero_()
    arrays = to_torch(name, variables)
    net.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
    images = random_images(32, 32)
    logits, _ = jax.jit(model.apply)(variables, images)
    assert relative_error(logits, torch_logits(net, images)) < 1e-4


def test_a_folder_with_its_own_validation_split_refuses_another(images, tmp_path):
    config = folder_config(images).dataset
    config.val_size = 6
    with pytest.raises(InputError, match=r"val_size=6: .* has its own validation split"):
        load_dataset(config, tmp_path)
