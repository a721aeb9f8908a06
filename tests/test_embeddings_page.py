"""The recipes of docs/embeddings.md run, one after the other, and do what the page says of them."""

import re

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from gini_jax import HeadClassifier
from tests.conftest import ROOT

BLOCKS = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "embeddings.md").read_text(), re.DOTALL
)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """What the first recipe leaves: the digits' pixels stand for embeddings."""
    folder = tmp_path_factory.mktemp("embeddings")
    x, y = load_digits(return_X_y=True)
    names = np.array([f"digit {k}" for k in range(10)])[y]
    table = pd.DataFrame({"vector": list(x.astype(np.float32)), "class": names})
    table.to_parquet(folder / "embeddings.parquet")
    found: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(BLOCKS[0], found)
    return found


def test_there_are_five_recipes():
    assert len(BLOCKS) == 5


def test_embeddings_come_from_a_file(there):
    assert there["accuracy"] > 0.95
    assert set(there["head"].classes_) == {f"digit {k}" for k in range(10)}


@pytest.mark.slow
def test_few_labels(there):
    own = dict(there)
    exec(BLOCKS[1], own)
    plain = HeadClassifier("ce", steps=200, random_state=0).fit(
        own["X"][own["few"]], own["y"][own["few"]]
    )
    assert len(own["few"]) == 50
    assert own["accuracy"] > plain.score(own["X_test"], own["y_test"]) - 0.02 > 0.6


@pytest.mark.slow
def test_wrong_labels(there):
    own = dict(there)
    exec(BLOCKS[2], own)
    assert own["accuracy"] > 0.85
    assert own["head"].n_iter_ <= 500


def test_an_index_finds_more_of_the_same_class(there):
    pytest.importorskip("usearch", reason="the recipe needs usearch, which is not installed")
    own = dict(there)
    exec(BLOCKS[3], own)
    before, after = own["recall"]["seen"]
    assert after > before
    classes, vectors = own["y_test"], own["X_test"].astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1)[:, :10]
    expected = (classes[nearest] == classes[:, None]).mean()
    assert own["recall_at_10"](own["X_test"], classes) == pytest.approx(expected, abs=2e-3)


@pytest.mark.slow
def test_objectives_are_compared(there):
    own = dict(there)
    exec(BLOCKS[4], own)
    assert min(own["accuracy"].values()) > 0.9
