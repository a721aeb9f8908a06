"""A part of one's own that breaks its contract ends in one error, before the run begins."""

import json

import numpy as np
import pytest

import gini_jax
from gini_jax.config import set_component
from gini_jax.config_files import changed
from gini_jax.errors import InputError
from gini_jax.evals import evaluation_of
from gini_jax.modes.train import main as train
from tests import dense
from tests.conftest import ROOT

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
    "optimizer.name": {"NoOptimizer": ("returned a NoneType", "optax.GradientTransformation")},
    "schedule.name": {"NoSchedule": ("returned a NoneType", "function from the step to the rate")},
    "dataset.name": {
        "StringLabels": ("an example with the label 'left'", SOURCE),
        "LateStringLabel": ("an example with the label 'left'", SOURCE),
        "Generators": ("split train is a generator", SOURCE),
        "PlainTuples": ("has a tuple as an example", SOURCE),
        "EmptyTest": ("split test of .* is empty", "dataset.test_split"),
        "NoNames": ("has no name", SOURCE),
        "Unmade": ("fails .KeyError: 'photos'", SOURCE),
        "Lost": ("has superclass -1, but with 2 superclass_names", "give each Example one"),
        "Torn": ("has examples of superclass 0 and of 1", "the same superclass"),
    },
    "evals": {
        "Overwrites": ("has the key 'test_accuracy' in KEYS", "own_test_accuracy"),
        "Text": ("a str as 'test_verdict', one of its KEYS", "a number for each key"),
        "Undeclared": ("a float as 'another', which KEYS does not name", "a number for each key"),
        "ObjectArray": ("a ndarray as 'names'", "arrays of numbers"),
        "Fails": ("no attribute 'validation'", "a number for each key"),
    },
    "loggers": {"Unclosed": ("must be a class with write, draw and close", "docs/extending.md")},
}


@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path, names in CASES.items() for name in names]
)
def test_a_misfit_is_named_with_its_contract(path, name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests")  # names of terms have no dots
    config, own = dense.get_config("ce"), f"misfits:{name}"
    config.num_epochs = config.loss.start_epoch = 1
    if path == "loss.terms":
        with config.unlocked():
            config.loss.terms[own] = 0.1
            config.objective = name
    elif path in ("evals", "loggers"):
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
    config.update(num_epochs=1, evals=("tests.misfits:Plain",))
    result = train(config, tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["largest"] == pytest.approx(result["largest"])
    with np.load(tmp_path / "run" / "arrays.npz") as arrays:
        np.testing.assert_array_equal(arrays["own/map"], np.ones((2, 2)))


def test_an_evaluation_is_tried_on_classes_that_all_have_examples():
    assert evaluation_of("tests.own_parts:Sparsity").KEYS


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
