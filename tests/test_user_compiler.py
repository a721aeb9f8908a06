"""End to end with the compiler that users have: the other tests switch its optimisations off."""

import json
import os
import subprocess
import sys

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


def test_the_default_learns_and_its_network_can_be_used(tmp_path):
    """Train, evaluate, load; on one device."""
    import gini_jax
    from gini_jax.data import load_dataset

    run = ("--config.num_epochs=6", f"--workdir={tmp_path / 'run'}")
    assert "report.html" in launch(["launch.py"], *run)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_accuracy"] > 0.95
    assert result["probe_accuracy"] > 0.95
    launch(["-m", "gini_jax"], "--mode=eval", f"--workdir={tmp_path / 'run'}")
    again = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert abs(again["test_loss"] - result["test_loss"]) < 1e-6
    trained = gini_jax.load(tmp_path / "run")
    dataset = load_dataset(trained.config.dataset)
    prediction = trained.predict(dataset.splits["test"].images)
    right = prediction.probabilities.argmax(axis=1) == dataset.splits["test"].labels
    assert abs(right.mean() - result["test_accuracy"]) < 1e-6
    assert prediction.names[0] == str(prediction.probabilities[0].argmax())
    assert trained.features(dataset.splits["test"].images[:3])["stage4"].shape == (3, 1, 1, 128)
