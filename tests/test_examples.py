"""The examples learn."""

import importlib

import pytest

from tests.conftest import ROOT

NEEDS = {"equinox_cnn": "equinox", "haiku_mlp": "haiku"}


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "examples").glob("*.py")))
def test_an_example_learns(name):
    library = NEEDS.get(name, "flax")
    pytest.importorskip(library, reason=f"the example needs {library}, which is not installed")
    accuracy = importlib.import_module(f"examples.{name}").main(steps=300)
    assert accuracy > 0.7  # 0.1 by chance
