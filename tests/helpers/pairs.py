"""All pairs of features: a covering array of tiny runs, and what each row must end in.

A row is a network, data, an objective and settings, and what is done with the run afterwards. Each
two values of different columns stand together in some row; pairs that do not go together are
refused instead, each in one InputError. A new network, objective or source is in a column by being
in its table.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import re
import shutil
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from PIL import Image

import gini_jax
from gini_jax.config.change import default_config, set_component, set_terms
from gini_jax.data.source import Example
from gini_jax.errors import InputError
from gini_jax.losses.terms import PRESETS, needs_of
from gini_jax.models import MODELS, from_torch, read_torch_file
from gini_jax.models.registry import body_settings
from gini_jax.modes import bench, predict, report
from gini_jax.modes import eval as eval_mode
from gini_jax.modes import export as export_mode
from gini_jax.modes.train import main as train
from gini_jax.training.checkpoints import Checkpoints
from gini_jax.training.experiment import create_model_of
from gini_jax.training.progress import Progress
from tests.conftest import SHARED_TFDS

OWN = "tests.helpers.plugins:TwoLayers"
TINY: dict[str, dict[str, Any]] = {
    "resnet": {"width": 4, "blocks": (1, 1)},
    "cvt": {"widths": (8, 8, 8), "blocks": (1, 1, 1), "heads": (1, 1, 2)},
    "mobilenet": {"stages": ((1, 8, 1, 2, 3), (2, 8, 2, 2, 3)), "stem": 8, "last": 16},
    "efficientnet": {"stages": ((1, 8, 1, 2, 3), (2, 8, 2, 2, 5)), "stem": 8, "last": 16},
}
DATA: dict[str, dict[str, Any]] = {
    "digits": {"name": "digits", "train_size": 120},
    "folder of odd images": {"name": "folder", "data_dir": "PLACE/odd"},
    "tfds": {"name": "cifar100", "data_dir": str(SHARED_TFDS), "train_size": 200},
    "hf": {"name": "hf:PLACE/hf"},
    "own source": {"name": "tests.helpers.plugins:Halves"},
    "families": {"name": "tests.helpers.pairs:Families"},
    "superclasses": {"name": "tests.helpers.pairs:Families", "superclasses": True},
    "held-out classes": {"name": "digits", "held_out_classes": 5, "train_size": 60},
    "labelled": {"name": "digits", "labelled": 6, "train_size": 120},
    "noise": {"name": "digits", "label_noise": 0.3, "train_size": 120},
}


def objectives(most: int = 6) -> list[str]:
    """All presets, joined by `+` where they need the same, so that the array stays small."""
    found: list[list[str]] = []
    for name, terms in PRESETS.items():
        needs, fits = needs_of(terms), []
        for group in found:
            own = {term for other in group for term in PRESETS[other]}
            alike = own and terms and needs_of(dict.fromkeys(own, 1.0)) == needs
            fits += [group] if alike and len(group) < most and not own & set(terms) else []
        if fits:
            fits[0].append(name)
        else:
            found.append([name])
    return ["+".join(group) for group in found]


COLUMNS: dict[str, list[Any]] = {
    "network": [*MODELS, OWN],
    "data": list(DATA),
    "objective": objectives(),
    "body": ["trained", "frozen"],
    "head": ["auto", "linear", "cosine", "probe"],
    "feed": ["device", "stream"],
    "accumulation": [1, 2],
    "average": [0.0, 0.9],
    "groups": [(), ((".*bias", 2.0, 0.0),)],
    "precision": ["float32", "bfloat16"],
    "use": ["predict", "weights", "program", "measure", "report", "continue"],
}


class Families:
    """Six classes of noise about a brightness, in two superclasses."""

    name, image_shape = "families", (8, 8)
    class_names = tuple("abcdef")
    superclass_names = ("dark", "bright")

    def __init__(self, config: Any):
        del config
        self.splits = {"train": self._images(36, 0), "test": self._images(18, 1)}

    def _images(self, number: int, seed: int) -> list[Example]:
        rng = np.random.default_rng(seed)
        shades = [40 * (i % 6) for i in range(number)]
        images = [rng.integers(s, s + 50, (8, 8, 3)).astype(np.uint8) for s in shades]
        return [Example(image, i % 6, i % 6 // 3) for i, image in enumerate(images)]

    def fingerprint(self, split: str) -> Any:
        """They are always the same."""
        return split


def terms_of(objective: str) -> dict[str, float]:
    """The terms of a preset, or of several joined by `+`."""
    return {k: v for name in objective.split("+") for k, v in PRESETS[name].items()}


def go_together(row: dict[str, Any]) -> bool:
    """Whether the first values of a row, or all, may be combined; the others are refused."""
    objective, network, data = (row.get(key) for key in ("objective", "network", "data"))
    terms = terms_of(objective) if objective else {}
    needs, head = needs_of(terms), row.get("head", "auto")
    heads = needs & {"cosine", "probe"}
    return not (
        (network == OWN and (heads or head != "auto" or row.get("precision") == "bfloat16"))
        or (heads and head not in ("auto", *heads))
        or ("superclasses" in needs and data not in (None, "tfds", "families"))
        or (row.get("accumulation") == 2 and data == "labelled")
    )


@functools.cache
def rows() -> list[dict[str, Any]]:
    """The covering array of what goes together; the same in each process."""
    from covertable import make

    refused = {tuple(pair.items()) for pair in refused_pairs()}

    def rule(a: str, b: str) -> dict[str, Any]:
        holds = lambda row: ((a, row[a]), (b, row[b])) not in refused  # noqa: E731
        return {"operator": "fn", "requires": [a, b], "evaluate": holds}

    rules = [rule(a, b) for a, b in sorted({(a, b) for (a, _), (b, _) in refused})]
    cheap = {"network": OWN, "use": "weights"}  # where a row is free to choose
    weights = {name: {COLUMNS[name].index(value): 10} for name, value in cheap.items()}
    found = make(COLUMNS, constraints=rules, weights=weights, salt="gini_jax")
    return [{name: row[name] for name in COLUMNS} for row in found]


def pairs_of(row: dict[str, Any]) -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
    """All pairs of a row's values, with their columns."""
    yield from itertools.combinations(row.items(), 2)


def refused_pairs() -> list[dict[str, Any]]:
    """Each two values that do not go together."""
    found = []
    for a, b in itertools.combinations(COLUMNS, 2):
        for x, y in itertools.product(COLUMNS[a], COLUMNS[b]):
            if go_together({a: x}) and go_together({b: y}) and not go_together({a: x, b: y}):
                found.append({a: x, b: y})
    return found


def write_places(folder: Path) -> None:
    """Images in files of odd modes and sizes, and a set of the library datasets, if it is there."""
    rng = np.random.default_rng(0)
    modes = ("RGB", "L", "CMYK", "RGBA", "P", "I;16")
    for label, name in enumerate(("ant ü", "bee", "Cat's")):
        (folder / "odd" / name).mkdir(parents=True)
        for i in range(14):
            shape = 12 + i, 40 - i
            pixels = rng.integers(80 * label, 80 * label + 90, (*shape, 3)).astype(np.uint8)
            mode = modes[i % len(modes)]
            image = Image.fromarray(pixels)
            if mode == "I;16":
                image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
            ending = {"CMYK": "jpg", "RGBA": "webp"}.get(mode, "png")
            image = image if mode == "I;16" else image.convert(mode)
            image.save(folder / "odd" / name / f"{i:02} [x].{ending}")
    try:
        import datasets
    except ImportError:
        return
    images = [Image.fromarray(x.image) for x in Families(None).splits["train"]]
    names = datasets.ClassLabel(names=list(Families.class_names))
    columns = {"image": images, "label": [i % 6 for i in range(len(images))]}
    kinds = datasets.Features({"image": datasets.Image(), "label": names})
    datasets.Dataset.from_dict(columns, features=kinds).save_to_disk(folder / "hf")


def row_config(row: dict[str, Any], places: Path) -> Any:
    """The tiny run that a row describes; values that it lacks are the first of their columns."""
    row = {name: values[0] for name, values in COLUMNS.items()} | {"data": "digits"} | row
    config = default_config("ce")
    set_terms(config, terms_of(row["objective"]))
    config.update(name="pairs", num_epochs=1, evals=(), report=False, loggers=("jsonl",))
    config.update(batch_size=12, grad_accumulation=row["accumulation"], eval_batch_size=60)
    settings = {
        k: str(v).replace("PLACE", str(places))
        for k, v in DATA[row["data"]].items()
        if isinstance(v, str)
    }
    config.dataset.update(DATA[row["data"]] | settings)
    config.dataset.update(image_size=32, feed=row["feed"])
    own: dict[str, Any] = {"width": 8}
    if row["network"] != OWN:
        own = next(s for kind, s in TINY.items() if row["network"].startswith(kind))
        own = own | {"head": row["head"], "dtype": row["precision"]}
    set_component(config, "model", row["network"], **own)
    config.loss.layers = {OWN: ("hidden",)}.get(row["network"], ("stage2",))
    if row["body"] == "frozen":
        config.loss.layers = ("pooled",)
        config.model.update(hidden=8, views=1, init=untrained_run(config, places))
        config.model.frozen = config.augment.flip = True
    config.optimizer.update(ema_decay=row["average"], groups=row["groups"])
    set_component(config, "schedule", "constant", learning_rate=0.01)
    return config


def untrained_run(config: Any, places: Path) -> str:
    """A run of a row's network that has not been trained: where frozen weights come from."""
    network = {**config.model, "width": config.model.get("width", 0)}
    folder = places / f"run{zlib.crc32(repr(sorted(network.items())).encode())}"
    if folder.exists():
        return str(folder)
    images = np.zeros((1, config.dataset.image_size, config.dataset.image_size, 3), np.float32)
    made = jax.jit(create_model_of(config, num_classes=4).init)(jax.random.key(7), images)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with contextlib.closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        state = {"average": None} | {k: made.get(k, {}) for k in ("params", "batch_stats")}
        checkpoints.save(1, state, dataclasses.asdict(Progress(best_step=1)))
        checkpoints.wait()
    return str(folder)


def run(row: dict[str, Any], places: Path, workdir: Path) -> None:
    """Trains a row's run, and uses it as the row says.

    Raises:
        AssertionError: results that must agree differ, a number is NaN, or Python or NumPy warned.
    """
    config = row_config(row, places)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result = train(config, workdir, devices=jax.devices()[:1])
        for line in (workdir / "metrics.jsonl").read_text().splitlines():
            assert None not in json.loads(line).values(), f"a metric is not finite: {line}"
        assert 0 <= result["test_accuracy"] <= 1
        assert np.isfinite(result["test_loss"])
        USES[row["use"]](config, workdir, result)
    ours = [w for w in warned if "gini_jax" in w.filename or w.category is RuntimeWarning]
    assert not ours, f"warned: {[str(w.message) for w in ours]}"


def _images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3)).astype(np.uint8)


def use_for_predictions(config: Any, workdir: Path, result: dict[str, Any]) -> None:
    """Mode predict, `load` and its features agree; explanations where the last layer is linear."""
    folder = workdir / "new"
    folder.mkdir()
    for i, pixels in enumerate(_images()):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    trained = gini_jax.load(workdir)
    found = trained.predict(sorted(folder.glob("*.png")))
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-4)
    explain = trained.head is not None
    table = predict.main(None, workdir, images=f"{folder}/*.png", explain=explain)
    assert table["class"].tolist() == found.names
    np.testing.assert_allclose(table["probability"], found.probabilities.max(axis=1), atol=1e-5)
    features = trained.features(_images())
    assert all(np.isfinite(np.float32(x)).all() for x in features.values())
    if explain:
        votes = features["pooled"] @ trained.head
        bias = trained.variables["params"]["head"]["dense"]["bias"]
        p = np.asarray(jax.nn.softmax(votes + np.asarray(bias)))
        np.testing.assert_allclose(p, trained.predict(_images()).probabilities, atol=2e-2)
        assert (workdir / "explanations.png").stat().st_size > 1000


def use_weights(config: Any, workdir: Path, result: dict[str, Any]) -> None:
    """Both files of weights come back as they were, or PyTorch has no such network."""
    trained = gini_jax.load(workdir)
    formats = ["safetensors"]
    try:
        import torch  # noqa: F401

        formats.append("torch")
    except ImportError:
        pass
    for kind in formats:
        if config.model.name == OWN or trained.model.head == "cosine":
            try:
                export_mode.main(None, workdir, format=kind)
            except InputError as error:
                assert "stablehlo" in str(error)
                continue
            raise AssertionError("weights that PyTorch has no network for are exported")
        path = export_mode.main(None, workdir, format=kind)
        arrays, before = read_torch_file(path), jax.device_get(trained.variables)
        settings = body_settings(config) | {"head": getattr(trained.model, "head", "linear")}
        if config.model.frozen:
            own = {name: arrays.pop(f"{name}.weight").T for name in ("hidden", "head")}
            del arrays["hidden.bias"], arrays["head.bias"]
            params, before = before["params"], before["batch_stats"]["frozen_body"]
            np.testing.assert_array_equal(own["hidden"], params["hidden"]["kernel"])
            np.testing.assert_array_equal(own["head"], params["head"]["dense"]["kernel"])
        again = from_torch(config.model.name, arrays, **settings)
        if config.model.frozen:
            again["params"].pop("head"), before["params"].pop("head")
        jax.tree.map(np.testing.assert_array_equal, dict(again), before)


def use_program(config: Any, workdir: Path, result: dict[str, Any]) -> None:
    """The exported program gives the probabilities of `load`, for any number of images."""
    path = export_mode.main(None, workdir, format="stablehlo")
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    trained, size = gini_jax.load(workdir), gini_jax.load(workdir).image_size
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3)).astype(np.uint8)
    seen = images / np.float32(255)
    logits = np.asarray(jax.jit(trained.model.apply)(trained.variables, seen)[0])
    for n in (1, 3):
        np.testing.assert_allclose(program.call(seen[:n]), logits[:n], rtol=2e-2, atol=2e-2)
    assert f"[N, {size}, {size}, 3]" in (path.parent / "README.md").read_text()


def use_for_measurements(config: Any, workdir: Path, result: dict[str, Any]) -> None:
    """Mode eval repeats the result; benches measure what fits, once."""
    found = eval_mode.main(config.copy_and_resolve_references(), workdir, devices=jax.devices()[:1])
    np.testing.assert_allclose(found["test_loss"], result["test_loss"], rtol=1e-3)
    table = bench.main(None, workdir, benches="retrieval,fewshot,prune,outliers")
    assert 0 <= table["recall_at_1"].item() <= 1
    assert 0 <= table["outlier_auroc_norm"].item() <= 1
    assert ("fewshot_1" in table) == bool(config.dataset.held_out_classes)


def use_for_reports(config: Any, workdir: Path, result: dict[str, Any]) -> None:
    """The page of a run, and a comparison with another seed."""
    page = report.main(None, workdir).read_text()
    assert config.objective in page
    assert ">nan<" not in re.sub('base64,[^"]*', "", page).lower()
    other = config.copy_and_resolve_references()
    other.seed = 1
    again = gini_jax.train(other, workdir.with_name("other"), jax.devices()[:1])
    comparison = gini_jax.compare([workdir, again])
    table = comparison.table()
    expected = np.mean([result["test_accuracy"], again.numbers["test_accuracy"]])
    np.testing.assert_allclose(table["mean"].item(), expected)
    assert isinstance(comparison._repr_html_(), str) and isinstance(table, pd.DataFrame)


def use_to_continue(config: Any, workdir: Path, result: dict[str, Any]) -> None:
    """Extended or resumed, it ends as if never interrupted; its weights start another run."""
    longer = config.copy_and_resolve_references()
    longer.num_epochs = 2
    whole = workdir.with_name("whole")
    expected = train(longer.copy_and_resolve_references(), whole, devices=jax.devices()[:1])
    found = train(longer.copy_and_resolve_references(), workdir, devices=jax.devices()[:1])
    same = ("test_loss", "test_accuracy", "best_epoch", "val_accuracy")
    assert {k: found[k] for k in same} == {k: expected[k] for k in same}
    last = max((whole / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    shutil.rmtree(last)  # as a run that ended after its first epoch
    (whole / "result.json").unlink()
    resumed = train(longer.copy_and_resolve_references(), whole, devices=jax.devices()[:1])
    assert {k: resumed[k] for k in same} == {k: expected[k] for k in same}
    still = config.copy_and_resolve_references()
    still.schedule.learning_rate = 1e-12
    train(still, workdir.with_name("new"), init_from=str(whole), devices=jax.devices()[:1])
    new, old = (gini_jax.load(x).variables["params"] for x in (workdir.with_name("new"), whole))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), new, old)


USES = {
    "predict": use_for_predictions,
    "weights": use_weights,
    "program": use_program,
    "measure": use_for_measurements,
    "report": use_for_reports,
    "continue": use_to_continue,
}
assert [*USES] == COLUMNS["use"]
