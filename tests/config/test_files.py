"""A run that version 0.2 wrote is read, tested, used and trained on.

`tests/files/run_0_2.zip` is the folder of `digits:gini_kl` with supcon added: width 2, two epochs
on 200 images, without its pictures and its first checkpoint. Version 0.2 kept the target of `kl` in
`loss.kl_target`, and the terms' settings in `loss.options`.
"""

import json
import zipfile

import jax
import numpy as np
import pytest

import gini_jax
from gini_jax.analysis.report import write_report
from gini_jax.data import load_dataset
from gini_jax.errors import InputError
from gini_jax.modes import eval as eval_mode
from gini_jax.modes import export, predict
from gini_jax.modes.train import main as train
from gini_jax.training.workdir import check_workdir, saved_config
from tests.conftest import ROOT


@pytest.fixture
def workdir(tmp_path):
    with zipfile.ZipFile(ROOT / "tests" / "files" / "run_0_2.zip") as file:
        file.extractall(tmp_path / "run")
    return tmp_path / "run"


def test_its_settings_are_those_that_it_was_trained_with(workdir):
    config = saved_config(workdir)
    terms = config.loss.terms.to_dict()
    assert terms["kl"] == {"weight": 0.5, "target": "present"} and terms["gini"] == {"weight": 0.25}
    assert (terms["supcon"]["weight"], terms["supcon"]["temperature"]) == (0.1, 0.5)
    settings = {"model.width": 2, "num_epochs": 2, "loss.start_epoch": 1, "evals": "accuracy"}
    settings |= {"schedule.name": "constant", "schedule.warmup_epochs": 0, "report": False}
    settings |= {"dataset.train_size": 200, "loggers": "jsonl", "loss.terms.gini": 0.25}
    settings |= {"loss.terms.kl.target": "present", "loss.terms.supcon": 0.1}
    settings |= {"loss.terms.supcon.temperature": 0.5}
    check_workdir(workdir, gini_jax.get_config("digits:gini_kl", **settings))  # it is this run
    with pytest.raises(InputError, match=r"loss.terms.kl.target: 'present' there, 'batch' now"):
        settings |= {"loss.terms.kl.target": "batch"}
        check_workdir(workdir, gini_jax.get_config("digits:gini_kl", **settings))


def test_its_network_predicts_what_it_predicted(workdir):
    trained, told = gini_jax.load(workdir), json.loads((workdir / "result.json").read_text())
    test = load_dataset(trained.config.dataset, only=("test",)).splits["test"]
    found = trained.predict(np.asarray(test.images)).probabilities.argmax(axis=1)
    assert (found == test.labels).mean() == pytest.approx(told["test_accuracy"], abs=1e-9)
    predict.main(None, workdir, images=str(ROOT / "docs" / "preview.png"))
    assert (workdir / "predictions.csv").read_text().count("\n") == 2
    assert export.main(None, workdir).exists()


@pytest.mark.slow
def test_it_is_tested_again_and_reported(workdir):
    told = json.loads((workdir / "result.json").read_text())
    again = eval_mode.main(saved_config(workdir), workdir, devices=jax.devices()[:1])
    assert again["test_accuracy"] == pytest.approx(told["test_accuracy"], abs=1e-9)
    write_report(workdir)
    assert "supcon" in (workdir / "report.html").read_text()


def test_it_is_trained_on(workdir):
    before = (workdir / "metrics.jsonl").read_text()
    config = saved_config(workdir)
    config.num_epochs = 3
    result = train(config, workdir, devices=jax.devices()[:1])
    assert (workdir / "metrics.jsonl").read_text().startswith(before)
    assert result["epochs"] == 3 and result["steps"] == 9
    saved = json.loads((workdir / "config.json").read_text())
    assert "options" not in saved["loss"] and saved["loss"]["terms"]["kl"]["target"] == "present"
