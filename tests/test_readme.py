"""The README's Quickstart stays complete: two sh blocks, each installing all that it needs."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def test_the_two_codes_of_the_readme_train_a_network_on_all_devices():
    """The loss function alone, and its value and gradient with arrays divided over a mesh."""
    alone, on_mesh = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, images):
            features = nn.relu(nn.Conv(8, (3, 3))(images))
            return nn.Dense(100)(features.mean(axis=(1, 2))), features

    model, rng = Net(), np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(16, 8, 8, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 100, 16))
    params = jax.jit(model.init)(jax.random.key(0), images)
    there = {"jax": jax, "optax": optax, "model": model, "images": images, "labels": labels}
    there |= {"params": params, "AxisType": jax.sharding.AxisType}
    there |= {name: getattr(jax.sharding, name) for name in ("NamedSharding", "PartitionSpec")}
    exec(alone, there)
    (expected, _), of_one = jax.value_and_grad(there["loss_fn"], has_aux=True)(
        params, images, labels
    )
    exec(on_mesh, there)
    np.testing.assert_allclose(there["loss"], expected, rtol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, there["gradients"], of_one)


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
