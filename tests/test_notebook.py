"""The notebook runs, and the terms do what they say."""

import re

import pytest

from tests.conftest import ROOT


def test_the_notebook_runs_and_the_terms_lower_the_impurity():
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient: pip install -e '.[dev]'")
    client = pytest.importorskip("nbclient", reason="needs nbclient: pip install -e '.[dev]'")
    notebook = nbformat.read(ROOT / "examples" / "losses.ipynb", as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    client.NotebookClient(notebook, timeout=300, resources=resources).execute()
    text = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    found = re.findall(r"test accuracy (\S+), Gini impurity of the features (\S+)", text)
    (ce_accuracy, ce_gini), (accuracy, gini) = ([float(x) for x in pair] for pair in found)
    assert min(ce_accuracy, accuracy) > 0.8
    assert gini < ce_gini - 0.01
