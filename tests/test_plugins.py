"""`module:Name`: a network, term, schedule and all other parts from a user's file."""

import json
import shutil

import numpy as np
import pytest

from gini_jax import load
from gini_jax.config.change import changed, default_config
from gini_jax.errors import InputError
from gini_jax.training.checks import check_config
from tests.conftest import ROOT
from tests.helpers.program import Program
from tests.helpers.runs import lines_of

OWN = {
    "model.name": "parts:TwoLayers",
    "model.width": "12",
    "loss.layers": "hidden",
    "loss.terms.parts:spread_loss": "0.01",
    "loss.terms.parts:spread_loss.power": "3.0",
    "loss.terms.pull.name": "deep.parts:Pull",
    "loss.terms.pull.weight": "0.001",
    "loss.terms.pull.strength": "0.25",
    "schedule.name": "parts:WarmRestarts",
    "schedule.waves": "3",
    "optimizer.name": "parts:Lion",
    "optimizer.b1": "0.95",
    "schedule.learning_rate": "0.003",
    "schedule.warmup_epochs": "0",
    "augment.parts:darken": "0.5",
    "augment.dark.name": "deep.parts:darken",
    "augment.dark.strength": "0.25",
    "dataset.name": "parts:Halves",
    "dataset.num_classes": "0",
    "dataset.val_size": "0",
    "evals": "parts:Sparsity",
    "step_metrics": "parts:certainty",
    "loggers": "parts:Notebook",
    "batch_size": "8",
    "num_epochs": "3",
    "loss.start_epoch": "1",
}
ARGUMENTS = ["--config=digits:ce", *(f"--config.{path}={value}" for path, value in OWN.items())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with a user's file, and a finished run."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(ROOT / "tests" / "helpers" / "plugins.py", folder / "parts.py")
    (folder / "deep").mkdir()
    shutil.copy(ROOT / "tests" / "helpers" / "plugins.py", folder / "deep" / "parts.py")
    Program("--workdir=run", *ARGUMENTS, cwd=folder).finish()
    return folder


def test_every_part_of_a_run_may_be_ones_own(folder):
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["objective"] == "spread_loss_pull"
    assert config["schedule"]["waves"] == 3 and "final" not in config["schedule"]
    assert config["optimizer"]["b1"] == 0.95 and "momentum" not in config["optimizer"]
    pull = {"name": "deep.parts:Pull", "weight": 0.001, "strength": 0.25}
    terms = {"parts:spread_loss": {"weight": 0.01, "power": 3.0}, "pull": pull}
    assert config["loss"]["terms"] == terms
    assert config["augment"]["dark"] == {"name": "deep.parts:darken", "strength": 0.25}
    lines = lines_of(folder / "run")
    assert all(line["train_parts:spread_loss"] > 0 for line in lines)
    assert all(0.5 <= line["train_parts:certainty"] <= 1 for line in lines)
    # Three waves in 12 steps: the last step of a wave has the rate after three quarters of it.
    wave = 0.003 * (1 + np.cos(np.pi * 3 / 4)) / 2
    np.testing.assert_allclose([line["learning_rate"] for line in lines], wave, rtol=1e-5)
    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["test_accuracy"] == 1.0
    assert 0 <= result["silent_features"] < 1
    notes = (folder / "run" / "digits-notes.txt").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in notes[:3]] == [1, 2, 3]


@pytest.mark.slow
def test_a_run_of_ones_own_parts_is_evaluated_and_reported(folder):
    Program("--mode=eval", "--workdir=run", cwd=folder).finish()
    Program("--mode=report", "--workdir=run", cwd=folder).finish()
    Program(
        "--mode=export", "--workdir=run", "--format=deep.parts:weight_count", cwd=folder
    ).finish()
    count = (folder / "run" / "export" / "model.weight_count").read_text()
    assert int(count) == json.loads((folder / "run" / "result.json").read_text())["num_parameters"]
    page = (folder / "run" / "report.html").read_text()
    assert "Silent features" in page and "parts:spread_loss" in page
    again, _ = Program("--workdir=run", *ARGUMENTS, cwd=folder).finish()
    assert "test accuracy    1.0000" in again  # it is finished


def test_a_network_is_loaded_where_its_file_lies(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = r"model\.name='parts:TwoLayers'.*start where parts.py lies"
    with pytest.raises(InputError, match=text):
        load(folder / "run")
    monkeypatch.chdir(folder)
    trained = load(folder / "run")
    bright = np.zeros((1, 8, 8, 3), np.uint8)
    bright[:, :, :4] = 150
    assert trained.predict(bright).names == ["left"]


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("model.name", "nowhere:Net", "'nowhere' cannot be imported"),
        ("schedule.name", "tests.helpers.plugins:WarmRestart", "did you mean 'WarmRestarts'"),
        ("loggers", ("nowhere:Log",), "'nowhere' cannot be imported"),
        ("evals", ("tests.helpers.plugins:Sparcity",), "did you mean 'Sparsity'"),
        ("augment.nowhere:dark", 0.5, "'nowhere' cannot be imported"),
        ("loss.terms.nowhere:loss", 0.5, "'nowhere' cannot be imported"),
    ],
)
def test_a_part_that_is_not_there_is_named(path, value, text):
    with pytest.raises(InputError, match=text):
        check_config(changed(default_config(), {path: value}), 1)
