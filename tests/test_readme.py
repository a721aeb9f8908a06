"""The README's Quickstart stays complete: two sh blocks, each installing all that it needs."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT


def test_the_quickstart_has_two_blocks_that_install_train_and_test():
    train, test = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for block in (train, test):
        assert block.startswith("python3 -m venv .venv\n")
        assert "pip install -r requirements.txt" in block
    assert train.rstrip().endswith("launch.py")
    assert test.rstrip().endswith("pytest -n 2 --dist worksteal")


def test_every_config_is_in_the_table():
    page = (ROOT / "docs" / "training.md").read_text()
    for path in (ROOT / "configs").glob("*.py"):
        assert f"`{path.stem}`" in page


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_both_codes_of_the_page_for_pytorch_give_the_same():
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0")
    page = (ROOT / "docs" / "from_pytorch.md").read_text()
    theirs, ours = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(32, 8, 3, 3)).astype(np.float32), rng.integers(0, 9, 32)
    there: dict = {}
    exec(theirs, there)
    expected = there["terms"](torch.tensor(x), torch.tensor(labels), 100)
    here = {"features": jnp.asarray(x.transpose(0, 2, 3, 1)), "labels": jnp.asarray(labels)}
    exec(ours, here)
    np.testing.assert_allclose((here["gini"], here["kl"]), expected, rtol=1e-5)
