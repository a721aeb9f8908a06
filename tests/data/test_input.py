"""Bad input ends in one clear error, before any long work, and loses nothing."""

import jax
import pytest

from gini_jax.errors import InputError
from gini_jax.modes.train import main as train
from tests.helpers import tiny
from tests.helpers.program import Program


def small_config(objective=None, **changes):
    config = tiny.get_config(objective)
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = small_config("ce", num_epochs=1)
    return train(config, workdir, devices=jax.devices()[:1]), workdir


WRONG = {
    "unknown objective": ({"objective": "ginikl"}, "did you mean 'gini_kl'"),
    "an objective without its terms": ({"loss.terms.kl": 0.0}, "call set_objective"),
    "terms that would never act": ({"loss.start_epoch": 99}, "start_epoch=99 lies after the last"),
    "unknown layer": ({"loss.layers": ("stage5",)}, "did you mean 'stage2'"),
    "unknown model": ({"model.name": "resnet_digit"}, "did you mean 'resnet_digits'"),
    "unknown optimiser": ({"optimizer.name": "sdg"}, "did you mean 'sgd'"),
    "unknown schedule": ({"schedule.name": "cosin"}, "did you mean 'cosine'"),
    "unknown data set": ({"dataset.name": "cifar1000"}, "did you mean 'cifar100'"),
    "missing data directory": (
        {"dataset.name": "cifar100", "dataset.data_dir": "/nowhere"},
        "tfds build cifar100 --data_dir=/nowhere",
    ),
    "a batch that does not divide": ({"batch_size": 63}, "batch_size=63 is not divisible by 2"),
    "a batch that does not divide into its parts": (
        {"batch_size": 64, "grad_accumulation": 3},
        "by 2 devices times grad_accumulation=3.*batch_size=60",
    ),
    "a batch beyond the data": (
        {"batch_size": 2000},
        "exceeds the 1197 training images; set a smaller one, such as --config.batch_size=256",
    ),
    "dropout of 1": ({"model.dropout": 1.0}, r"\[0, 1\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_refused_before_anything_is_compiled(case, tmp_path, monkeypatch):
    changes, text = WRONG[case]
    monkeypatch.setattr("gini_jax.training.stepper.create_step", lambda *_: pytest.fail("compiled"))
    with pytest.raises(InputError, match=text):
        train(small_config(**changes), tmp_path, devices=jax.devices()[:2])
    assert not list(tmp_path.iterdir())


def test_a_workdir_of_another_config_is_refused_and_left_alone(finished):
    _, workdir = finished
    before = (workdir / "result.json").read_bytes()
    with pytest.raises(InputError, match="seed: 0 there, 7 now"):
        train(small_config("ce", num_epochs=1, seed=7), workdir, devices=jax.devices()[:1])
    assert (workdir / "result.json").read_bytes() == before


def test_an_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        train(small_config(), tmp_path / "file", devices=jax.devices()[:1])


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("--config=digits:ginikl", "did you mean 'gini_kl'"),
        ("--config.loggers=jsonl,wandbb", "did you mean 'wandb'"),
        ("--workdir=foo://a/b", "a bucket as gs://BUCKET/FOLDER"),
        ("--workdir=gs:///run", "a bucket as gs://BUCKET/FOLDER"),
        ("--config.num_epoch=3", "did you mean 'num_epochs'"),
        ("--config=configs/none.py", "unknown config"),
        ("--config.batch_size=many", "batch_size='many' has type str; it needs type int"),
        ("--mode=trian", "did you mean 'train'"),
        ("--workdri=x", "workdri"),
        ("stray", "unknown argument 'stray'"),
    ],
)
def test_a_wrong_command_line_ends_in_one_error(argument, text, tmp_path):
    elsewhere = () if argument.startswith("--workdir") else (f"--workdir={tmp_path}",)
    program = Program(*elsewhere, argument)
    assert program.wait() != 0
    assert text in program.err
    assert "Traceback" not in program.err
    assert not list(tmp_path.iterdir())
