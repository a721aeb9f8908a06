"""End to end with the compiler that users have: the other tests switch its optimisations off."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TEST_SETTINGS = (
    "XLA_FLAGS",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "JAX_COMPILATION_CACHE_DIR",
    "NPROC",
)


def launch(program, *arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if k not in TEST_SETTINGS}
    done = subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


DEFAULT = ["--config.num_epochs=6"]
TINY = ["--config=tests/helpers/tiny.py", "--config.evals=probe"]


@pytest.mark.parametrize(
    ("config", "least", "stage"),
    [
        pytest.param(DEFAULT, 0.95, ("stage4", 1, 1, 128), marks=pytest.mark.slow),
        pytest.param(TINY, 0.85, ("stage2", 4, 4, 16), marks=pytest.mark.slow),
    ],
    ids=["default", "tiny"],
)
def test_a_network_learns_and_can_be_used(tmp_path, config, least, stage):
    """Train, evaluate, load; on one device."""
    import gini_jax
    from gini_jax.data import load_dataset

    said = launch(["launch.py"], *config, f"--workdir={tmp_path / 'run'}")
    assert ("curves.png" in said) == (config == DEFAULT)
    assert ("report.html" in said) == (config == DEFAULT)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_accuracy"] > least
    assert result["probe_accuracy"] > least
    launch(["-m", "gini_jax"], "--mode=eval", f"--workdir={tmp_path / 'run'}")
    again = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert abs(again["test_loss"] - result["test_loss"]) < 1e-6
    trained = gini_jax.load(tmp_path / "run")
    dataset = load_dataset(trained.config.dataset)
    prediction = trained.predict(dataset.splits["test"].images)
    right = prediction.probabilities.argmax(axis=1) == dataset.splits["test"].labels
    assert abs(right.mean() - result["test_accuracy"]) < 1e-6
    assert prediction.names[0] == str(prediction.probabilities[0].argmax())
    layer, *shape = stage
    features = trained.features(dataset.splits["test"].images[:3])[layer]
    assert features.shape == (3, *shape)
