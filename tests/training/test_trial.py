"""A part of one's own that breaks its contract ends in one error, before the run begins."""

import json

import numpy as np
import pytest

import gini_jax
from gini_jax.analysis.runs import read_run
from gini_jax.config.change import changed, set_component
from gini_jax.data import load_dataset
from gini_jax.data.source import Example
from gini_jax.errors import InputError
from gini_jax.evals import evaluation_of
from gini_jax.modes.train import main as train
from tests.conftest import ROOT
from tests.helpers import dense
from tests.helpers.plugins import Halves

NETWORK, TERM = "a network is a flax.linen module", "a term is a loss"
SOURCE = "a source is a class"
CASES = {
    "model.name": {
        "LogitsAlone": ("returns a ShapeDtypeStruct", NETWORK),
        "NoPooled": (r"returns the features \['hidden'\]", NETWORK),
        "OneClassMore": (r"logits of shape \[2, 3\] for N=2, K=2", NETWORK),
        "NoExampleIndex": ("unexpected keyword argument 'example_index'", NETWORK),
        "NoClasses": ("unexpected keyword argument 'num_classes'", NETWORK),
    },
    "loss.terms": {
        "NoInit": ("no attribute 'init'", TERM),
        "NeedsAnArgument": ("missing 1 required positional argument: 'strength'", TERM),
        "without_where": ("unexpected keyword argument 'where'", TERM),
        "without_axis_name": ("unexpected keyword argument 'axis_name'", TERM),
        "gives_none": ("a loss returned NoneType", TERM),
        "gives_two": ("a loss returned tuple", TERM),
        "gives_a_vector": (r"a loss returned shape \[16\]", TERM),
        "GivesAVector": (r"returns an array of shape \[2\]", TERM),
    },
    "optimizer.name": {
        "NoOptimizer": ("returned a NoneType", "optax.GradientTransformation"),
        "Raises": ("KeyError: 'momentum'", "an optimiser is a dataclass"),
    },
    "schedule.name": {
        "NoSchedule": ("returned a NoneType", "function from the step to the rate"),
        "Falling": ("gives the rate -", "a scalar from 0 on"),
    },
    "augment": {
        "gives_no_image": ("returns a NoneType for an image", "an augmentation is a function"),
        "another_shape": (r"returns shape \[4, 8, 3\]", "an augmentation is a function"),
        "asks_for_a_number": ("fails .TracerBoolConversionError", "which jax traces"),
    },
    "step_metrics": {
        "one_number": (r"returns shape \[\] for 2 examples", "a step metric is a function"),
        "in_words": ("str", "a step metric is a function"),
    },
    "dataset.name": {
        "StringLabels": ("an example with the label 'left'", SOURCE),
        "LateStringLabel": ("an example with the label 'left'", SOURCE),
        "Generators": ("split train is a generator", SOURCE),
        "PlainTuples": ("has a tuple as an example", SOURCE),
        "EmptyTest": ("split test of .* is empty", "dataset.test_split"),
        "NoNames": ("has no name", SOURCE),
        "Unmade": ("fails .KeyError: 'photos'", SOURCE),
        "Lost": ("has superclass -1, but with 2 superclass_names", "give each Example one"),
        "NumberedClasses": (r"class_names is \(0, 1\)", SOURCE),
        "NoShape": ("image_shape is None", SOURCE),
        "NoJson": ("set is not JSON serializable", SOURCE),
        "Torn": ("has examples of superclass 0 and of 1", "the same superclass"),
    },
    "evals": {
        "Overwrites": ("has the key 'test_accuracy' in KEYS", "own_test_accuracy"),
        "Text": ("a str as 'test_verdict', one of its KEYS", "a number for each key"),
        "Undeclared": ("a float as 'another', which KEYS does not name", "a number for each key"),
        "ObjectArray": ("a ndarray as 'names'", "arrays of numbers"),
        "KeysInAText": ("KEYS must be a dictionary of texts", "a number for each key"),
        "Forgets": ("returned no 'yours', one of its KEYS", "a number for each key"),
        "Fails": ("no attribute 'validation'", "a number for each key"),
    },
    "loggers": {"Unclosed": ("must be a class with write, draw and close", "docs/extending.md")},
}


@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path, names in CASES.items() for name in names]
)
def test_a_misfit_is_named_with_its_contract(path, name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "helpers")  # names of terms have no dots
    config, own = dense.get_config("ce"), f"misfits:{name}"
    config.num_epochs = config.loss.start_epoch = 1
    if path == "loss.terms":
        with config.unlocked():
            config.loss.terms[own] = 0.1
            config.objective = name
    elif path == "augment":
        with config.unlocked():
            config.augment[own] = 0.5
    elif path in ("evals", "loggers", "step_metrics"):
        config[path] = (own,)
    elif path == "dataset.name":
        config.dataset.update(name=own, num_classes=0, val_size=0)
        config.batch_size = 8
    else:
        set_component(config, path.partition(".")[0], own)
    what, contract = CASES[path][name]
    with pytest.raises(InputError, match=f"{what}.*{contract}"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_module_that_ends_the_process_is_named(tmp_path, monkeypatch):
    (tmp_path / "it_exits.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"'it_exits' cannot be imported .SystemExit: 3"):
        changed(dense.get_config(), {"model.name": "it_exits:Network"})


def test_a_plain_class_is_an_evaluation(tmp_path):
    config = dense.get_config("ce")
    config.update(num_epochs=1, evals=("tests.helpers.misfits:Plain",))
    result = train(config, tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["largest"] == pytest.approx(result["largest"])
    with np.load(tmp_path / "run" / "arrays.npz") as arrays:
        np.testing.assert_array_equal(arrays["own/map"], np.ones((2, 2)))


def test_an_evaluation_is_tried_on_classes_that_all_have_examples():
    assert evaluation_of("tests.helpers.plugins:Sparsity").KEYS


@pytest.mark.slow
def test_a_run_that_lost_its_arrays_is_tested_again(tmp_path):
    config = dense.get_config("ce")
    config.num_epochs = config.loss.start_epoch = 1
    before = gini_jax.train(config, tmp_path / "run").numbers
    assert before["probe_train_examples"] is None  # without evaluations nothing is probed
    (tmp_path / "run" / "arrays.npz").unlink()
    with pytest.raises(InputError, match=r"arrays.npz is missing.*start its command again"):
        gini_jax.compare(tmp_path / "run")
    again = gini_jax.train(config, tmp_path / "run")
    assert again.numbers["test_accuracy"] == before["test_accuracy"]
    assert gini_jax.compare(tmp_path / "run").groups.keys() == {"ce"}


def test_a_setting_of_the_name_of_one_that_all_have_is_refused():
    with pytest.raises(InputError, match="has a setting 'learning_rate', which every schedule has"):
        set_component(dense.get_config(), "schedule", "tests.helpers.misfits:SameSetting")


def test_two_sources_of_one_name_have_their_own_images(tmp_path):
    config = dense.get_config().dataset
    config.update(num_classes=0, val_size=0)
    found = []
    for name in ("Halves", "Darker"):
        config.name = (
            f"tests.{'helpers.plugins' if name == 'Halves' else 'training.test_trial'}:{name}"
        )
        found.append(np.asarray(load_dataset(config, tmp_path).splits["train"].images).mean())
    assert found[1] < found[0] / 2 + 1


class Darker(Halves):
    """Its images have half the brightness."""

    def __init__(self, config):
        super().__init__(config)
        for split, examples in self.splits.items():
            self.splits[split] = [Example(x.image // 2, x.label) for x in examples]


FILES = ("config.json", "dataset.json", "result.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", ["", "{}", '{"seed": 0, "class_na'])
def test_a_damaged_file_of_a_run_is_named(name, text, tmp_path):
    config = dense.get_config("ce")
    for file in (*FILES, "metrics.jsonl", "arrays.npz"):
        (tmp_path / file).write_text(json.dumps(config.to_dict()) if file == "config.json" else "")
    (tmp_path / "dataset.json").write_text('{"class_names": []}')
    (tmp_path / "result.json").write_text('{"epochs": 1}')
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name} is damaged|was written by gini_jax 0.1"):
        read_run(tmp_path)
