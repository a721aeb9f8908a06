"""The theory scripts: their tools against closed forms, and one of them run small."""

import importlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

from tests.conftest import ROOT

FOLDER = ROOT / "examples" / "theory"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")


@pytest.fixture
def script(monkeypatch):
    """Imports a script as if it were run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in ("common", *SCRIPTS):
        sys.modules.pop(name, None)


def test_descend_is_gradient_descent(script):
    """On half a square, x falls by the factor 1 - rate in each step."""
    found, halves = script("common").descend(
        lambda x: 0.5 * jnp.square(x).sum(), jnp.ones(2), optax.sgd(0.1), 40, jnp.sum, records=4
    )
    np.testing.assert_allclose(found, 0.9**40, rtol=1e-5)
    np.testing.assert_allclose(halves, 2 * 0.9 ** np.array([0, 10, 20, 30]), rtol=1e-5)


def test_frechets_distance_equals_that_by_matrix_roots(script):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 5)), 2 * rng.normal(size=(300, 5)) + 1
    first, second = (np.cov(x.T, bias=True) for x in (a, b))
    root = scipy.linalg.sqrtm(first @ second).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second - 2 * root)
    found = script("relation_gan").frechet(jnp.array(a), jnp.array(b))
    assert float(found) == pytest.approx(expected, rel=1e-3)


def test_neurons_at_averages_and_at_single_clusters_are_told_apart(script):
    module = script("feature_averaging")
    means = module.MEANS
    average = {"w": jnp.array(means[::2].sum(axis=0))[:, None]}
    single = {"w": jnp.array(means[3])[:, None]}
    assert module.concentration(average) == pytest.approx(1 / 5, rel=1e-4)
    assert module.concentration(single) == pytest.approx(1, rel=1e-4)


def test_graph_convolution_beats_single_nodes(script):
    module = script("graph_convolution")
    graphs = [jnp.stack(x) for x in zip(*(module.graph(0.5, s) for s in range(2)), strict=True)]
    keys = jax.random.split(jax.random.key(0), 2)
    nodes, graph = (np.mean(module.train(way, 0.0, *graphs, keys)[0]) for way in (False, True))
    assert graph > nodes + 0.1


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_short_and_its_result_and_picture_are_kept(name):
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= 120
    found = json.loads((ROOT / "results" / "theory" / f"{name}.json").read_text())
    assert isinstance(found["effect_seen"], bool)
    assert f"theory_{name}.png" in (ROOT / "docs" / "theory.md").read_text()
    assert (ROOT / "docs" / f"theory_{name}.png").is_file()
