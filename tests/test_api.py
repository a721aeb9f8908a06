"""From Python: configs, runs and comparisons; reports of several runs; the command that works."""

import pickle
import shlex
import signal
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

import gini_jax
from configs import digits
from gini_jax.config.files import shipped_configs
from gini_jax.config.registry import SETTINGS
from gini_jax.data.source import Example
from gini_jax.errors import InputError
from gini_jax.modes.repair import repaired
from gini_jax.training.checks import check_config
from gini_jax.training.experiment import check_before_data
from gini_jax.training.initial import check_init
from tests.conftest import ROOT
from tests.helpers.program import Program

ONE_EPOCH = {"num_epochs": 1, "loss.start_epoch": 1}


def dense_config(objective, **changes):
    return gini_jax.get_config(f"{ROOT}/tests/helpers/dense.py:{objective}", **ONE_EPOCH, **changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of two objectives, and a run of another batch size."""
    folder, devices = tmp_path_factory.mktemp("runs"), jax.devices()[:1]
    configs = {
        f"{name}{seed}": dense_config(name, seed=seed) for name in ("ce", "gini") for seed in (0, 1)
    }
    configs["small"] = dense_config("ce", batch_size=32)
    return {k: gini_jax.train(config, folder / k, devices=devices) for k, config in configs.items()}


def test_a_config_by_name_is_the_files_with_the_changes():
    config = gini_jax.get_config(
        "digits:gini", batch_size=32, **{"loss.terms.gini": 2, "evals": "knn"}
    )
    expected = digits.get_config("gini")
    expected.batch_size, expected.loss.terms.gini.weight, expected.evals = 32, 2.0, ("knn",)
    assert config.to_dict() == expected.to_dict()
    assert gini_jax.get_config().objective == "gini_kl"
    other = gini_jax.get_config("digits:ce", **{"model.name": "cvt13", "model.drop_path": 0.3})
    assert (other.model.name, other.model.drop_path) == ("cvt13", 0.3)
    own = gini_jax.get_config("digits:supcon", **{"loss.terms.supcon.temperature": 0.5})
    assert own.loss.terms.supcon.temperature == 0.5
    check_config(own, num_devices=1)


WRONG = {
    "a config": (("digitz", {}), "did you mean 'digits'"),
    "an objective": (("digits:gin", {}), "did you mean 'gini'"),
    "a setting": (("digits", {"num_epoch": 3}), "did you mean 'num_epochs'"),
    "a type": (
        ("digits", {"num_epochs": "x"}),
        "num_epochs='x' has type str; it needs type int, such as",
    ),
    "a term": (("digits", {"loss.terms.gni": 1.0}), "did you mean 'gini'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_name_or_type_is_refused(case):
    (name, settings), text = WRONG[case]
    with pytest.raises(InputError, match=text):
        gini_jax.get_config(name, **settings)


def test_a_run_has_numbers_curves_and_its_network(runs):
    result = runs["gini0"]
    assert list(result.curves.index) == [1]
    assert result.curves.loc[1, "val_accuracy"] == result.numbers["val_accuracy"]
    images = np.zeros((2, 8, 8, 3), np.uint8)
    assert result.trained.predict(images).probabilities.shape == (2, 10)
    assert "Gini impurity of the features" in result._repr_html_()


def test_by_default_a_run_lies_in_a_folder_of_its_own_and_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = gini_jax.train(dense_config("ce"), devices=jax.devices()[:1])
    assert first.workdir.parent.resolve() == tmp_path / "runs"
    written = (first.workdir / "result.json").stat().st_mtime_ns
    assert gini_jax.train(dense_config("ce")).workdir == first.workdir
    assert (first.workdir / "result.json").stat().st_mtime_ns == written
    other = gini_jax.train(dense_config("ce", batch_size=32), devices=jax.devices()[:1])
    assert other.workdir != first.workdir


def test_a_comparison_pairs_by_seed_and_tells_settings_apart(runs):
    comparison = gini_jax.compare([runs[k] for k in ("ce0", "gini1", "ce1", "gini0")])
    assert repr(comparison) == "Comparison(ce: 2, gini: 2)"
    numbers = {k: run.numbers["test_accuracy"] for k, run in runs.items()}
    differences = [numbers[f"gini{seed}"] - numbers[f"ce{seed}"] for seed in (0, 1)]
    assert comparison.table().loc["gini", "difference"] == pytest.approx(np.mean(differences))
    assert "Test accuracy, difference" in comparison._repr_html_()
    apart = gini_jax.compare([runs["ce0"].workdir, runs["small"]])
    assert set(apart.groups) == {"ce-batch_size=64", "ce-batch_size=32"}
    with pytest.raises(InputError, match="the same settings, data and seed 0; leave one"):
        gini_jax.compare([runs["ce0"], runs["ce0"].workdir])


@pytest.mark.slow
def test_the_report_of_several_runs_says_what_sets_them_apart(runs, tmp_path):
    own, small, gini = (runs[k].workdir for k in ("ce0", "small", "gini0"))
    arguments = (f"--workdir={own},{gini}", f"--workdir={small}")
    out, _ = Program("--mode=report", *arguments, cwd=tmp_path).finish()
    page = (own / "comparison.html").read_text()
    assert str(own / "comparison.html") in out
    assert "They differ in" in page and "batch_size: 32, 64" in page
    assert "<td>gini, 64</td>" in page and "<td>ce, 32</td>" in page
    _, err = Program("--mode=eval", *arguments, cwd=tmp_path).finish(status=1)
    assert "--workdir is given 2 times" in err


LATE = [name for name in shipped_configs() if gini_jax.get_config(name).loss.start_epoch > 2]


@pytest.mark.parametrize("name", sorted(LATE))
def test_two_epochs_of_a_config_whose_terms_start_later_end_in_the_command_that_works(name):
    config = gini_jax.get_config(name, num_epochs=2)
    argv = ["launch.py", f"--config={name}", "--config.num_epochs=2"]
    with pytest.raises(InputError) as error:
        check_before_data(config, jax.devices()[:1])
    command = repaired(argv, config, error.value)
    assert command.startswith(f"python launch.py --config={name} --config.num_epochs=2 ")
    fixes = [part.removeprefix("--config.").split("=") for part in shlex.split(command)[4:]]
    typed = {path: type(SETTINGS.rows[path].default)(value) for path, value in fixes}
    check_before_data(gini_jax.get_config(name, num_epochs=2, **typed), jax.devices()[:1])


def test_what_no_setting_mends_has_no_command():
    config = gini_jax.get_config("digits")
    assert repaired(["launch.py"], config, InputError("set --config.name=NAME, or --workdir")) == ""


def test_the_command_that_works_stands_in_the_error(tmp_path):
    arguments = ("--config=digits", "--config.num_epochs=2", f"--workdir={tmp_path}/run")
    _, err = Program(*arguments, cwd=tmp_path).finish(status=1)
    assert f"--workdir={tmp_path}/run --config.loss.start_epoch=1" in err.splitlines()[-1]


class Shifted:
    """Digits; another number gives other pixels."""

    name, class_names, superclass_names, image_shape = "shifted", ("0", "1"), (), (8, 8)
    number = 0

    def __init__(self, config):
        del config
        rng = np.random.default_rng(type(self).number)
        images = rng.integers(0, 255, (48, 8, 8, 3)).astype(np.uint8)
        examples = [Example(image, i % 2) for i, image in enumerate(images)]
        self.splits = {"train": examples[:32], "test": examples[32:]}

    def fingerprint(self, split):
        return [split, type(self).number]


@pytest.mark.slow
def test_runs_on_other_data_are_other_groups(tmp_path, monkeypatch):
    config = dense_config("ce", batch_size=8)
    config.dataset.update(name="tests.test_api:Shifted", num_classes=0)
    for number in (0, 1):
        monkeypatch.setattr("tests.test_api.Shifted.number", number)
        for seed in (0, 1):
            config.seed = seed
            gini_jax.train(config, tmp_path / f"{number}{seed}", devices=jax.devices()[:1])
    comparison = gini_jax.compare([tmp_path / name for name in ("00", "11", "10", "01")])
    assert [len(runs) for runs in comparison.groups.values()] == [2, 2]
    assert all(name.startswith("ce-data=") for name in comparison.groups)


def test_runs_that_differ_in_many_settings_stay_apart_in_folders_of_one_name(tmp_path):
    """And with equal seeds they are no duplicates of each other."""
    changes = {"batch_size": 32, "eval_batch_size": 50, "schedule.learning_rate": 0.02}
    changes |= {"optimizer.momentum": 0.8, "optimizer.weight_decay": 0.0}
    folders = []
    for place, own in (("a", {}), ("b", changes)):
        folders.append(tmp_path / place / "run")
        gini_jax.train(dense_config("ce", **own), folders[-1], jax.devices()[:1])
    assert list(gini_jax.compare(folders).groups) == ["ce-run=run", "ce-run=run (2)"]


@pytest.mark.slow
def test_one_run_alone_can_be_compared_and_seeds_may_be_an_array(runs, tmp_path, monkeypatch):
    assert repr(gini_jax.compare(str(runs["ce0"].workdir))) == "Comparison(ce: 1)"
    monkeypatch.chdir(tmp_path)
    found = gini_jax.compare(dense_config("ce"), seeds=np.arange(2))
    assert repr(found) == "Comparison(ce: 2)"
    with pytest.raises(InputError, match="unknown metric 'nonsense'"):
        found.table("nonsense")


@pytest.mark.parametrize("devices", [[], "cpu", ["cpu"], jax.devices()[0], jax.devices()[:1] * 2])
def test_devices_that_are_none_are_refused(devices, tmp_path):
    with pytest.raises(InputError, match="must be a list of different jax devices, such as"):
        gini_jax.train(dense_config("ce"), tmp_path / "run", devices=devices)


def test_runs_train_in_a_thread_and_a_network_is_pickled_after_use(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:
        jobs = [
            pool.submit(gini_jax.train, dense_config("ce", seed=k), tmp_path / f"{k}")
            for k in (0, 1)
        ]
        trained = [job.result().trained for job in jobs]
    assert signal.getsignal(signal.SIGINT) is before
    images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3)).astype(np.uint8)
    expected = trained[0].predict(images).probabilities
    again = pickle.loads(pickle.dumps(trained[0]))
    np.testing.assert_array_equal(again.predict(images).probabilities, expected)


def test_weights_of_a_package_without_a_name_are_refused():
    config = dense_config("ce", **{"model.init": "pip:"})
    with pytest.raises(InputError, match=r"'' is no name of a package; give one, such as pip:deep"):
        check_init(config)


def test_what_is_no_config_or_no_folder_is_refused(runs):
    with pytest.raises(InputError, match=r"config is a str; give what gini_jax.get_config\(name\)"):
        gini_jax.train("digits")
    with pytest.raises(InputError, match="a run cannot live in S3"):
        gini_jax.train(dense_config("ce"), "s3://bucket/run")
    with pytest.raises(InputError, match=r"seeds=\[0, 1\] are for configs.*leave seeds out"):
        gini_jax.compare(runs["ce0"].workdir, seeds=(0, 1))
