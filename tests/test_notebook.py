"""The notebooks run, and show what they say."""

import os
import re

import pytest

from tests.conftest import ROOT


def executed(name, folder):
    """The cells of a notebook after a run in a folder, and all that they printed or returned."""
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient: pip install -e '.[dev]'")
    client = pytest.importorskip("nbclient", reason="needs nbclient: pip install -e '.[dev]'")
    notebook = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    client.NotebookClient(notebook, timeout=300, resources=resources).execute(env=environment)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(x.get("text", "") + str(x.get("data", "")) for x in outputs)


@pytest.mark.slow
def test_the_terms_lower_the_impurity_in_the_notebook_of_the_losses(tmp_path):
    text = executed("losses", tmp_path)
    found = re.findall(r"test accuracy (\S+), Gini impurity of the features ([\d.]+)", text)
    (ce_accuracy, ce_gini), (accuracy, gini) = ([float(x) for x in pair] for pair in found)
    assert min(ce_accuracy, accuracy) > 0.8
    assert gini < ce_gini - 0.01


@pytest.mark.slow
def test_the_notebook_of_training_shows_a_run_and_a_comparison(tmp_path):
    text = executed("train", tmp_path)
    assert float(re.search(r"test accuracy ([\d.]+)", text)[1]) > 0.9
    predicted = re.search(r"\['(\d)', '(\d)', '(\d)', '(\d)', '(\d)'\]", text).groups()
    assert sum(name == str(digit) for digit, name in enumerate(predicted)) >= 3
    assert "Test accuracy, difference" in text and text.count("<img") >= 3
    assert len(list((tmp_path / "runs").glob("digits-*"))) == 4
