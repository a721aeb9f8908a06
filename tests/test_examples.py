"""The examples learn."""

import importlib

import pytest

from tests.conftest import ROOT

NEEDS = {"equinox_mlp": "equinox", "haiku_mlp": "haiku"}


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "examples").glob("*.py")))
def test_an_example_learns(name):
    library = NEEDS.get(name, "flax")
    pytest.importorskip(library, reason=f"the example needs {library}, which is not installed")
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 60
    accuracy = importlib.import_module(f"examples.{name}").main(steps=150)
    assert accuracy > 0.8  # 0.1 by chance
