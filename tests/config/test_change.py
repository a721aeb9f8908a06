"""Every setting has its rule, and every piece of advice can be followed."""

import json
import math
import re
import subprocess
import sys

import jax
import pytest

from configs import digits
from gini_jax.config.change import changed, check_keys, default_config, set_model
from gini_jax.config.files import config_path, from_saved
from gini_jax.config.registry import SETTINGS, flattened
from gini_jax.errors import InputError, RunError
from gini_jax.help import usage
from gini_jax.losses.terms import PRESETS, TERMS
from gini_jax.models import MODELS
from gini_jax.modes.train import main as train
from gini_jax.storage import run_path, storage_path
from gini_jax.training.checks import check_config, notes_on
from tests.conftest import ROOT
from tests.helpers import dense, tiny
from tests.helpers.program import Program

ROWS = SETTINGS.of(default_config()) | {
    f"{name}:model.{key}": row
    for name in ("resnet50", "cvt13")
    for key, row in SETTINGS.sections["model"].settings(name).items()
}


def outside(row):
    """Values that a row's rule forbids."""
    if row.choices:
        wrong = "no such choice"
        return [(wrong,)] if isinstance(row.default, tuple) else [wrong]
    if not row.bounds:
        return []
    low, high = (float(end) for end in row.bounds[1:-1].split(","))
    values = [math.nan, math.inf, -math.inf]
    values += [low - 1 if row.bounds[0] == "[" else low] if math.isfinite(low) else []
    values += [high + 1 if row.bounds[-1] == "]" else high] if math.isfinite(high) else []
    if isinstance(row.default, int):
        values = [int(v) for v in values if math.isfinite(v)]
    return values


@pytest.mark.parametrize("path", ROWS)
def test_values_outside_a_settings_rule_are_refused(path):
    row, (name, _, key) = ROWS[path], path.rpartition(":")
    config = default_config()
    if name:
        set_model(config, name)
    for value in outside(row):
        with config.unlocked(), config.ignore_type():
            config.update_from_flattened_dict({key or path: value})
        with pytest.raises(InputError, match=re.escape((key or path).split(".")[-1]) + "|unknown"):
            check_config(config, num_devices=1)


def test_every_number_has_bounds_and_every_setting_a_meaning():
    for path, row in ROWS.items():
        is_number = isinstance(row.default, (int, float)) and not isinstance(row.default, bool)
        assert row.meaning, path
        assert row.bounds or row.choices or not is_number, path


def test_the_help_tells_every_setting():
    text = usage("all")
    for path in SETTINGS.of(default_config()):
        assert f"--config.{path}=" in text
    assert "--config.schedule.name=step\n      boundaries=(), factor=0.2\n" in text
    assert max(map(len, text.splitlines())) <= 100
    with pytest.raises(InputError, match="unknown part of the help 'los'; did you mean 'loss'"):
        usage("los")


def test_a_config_of_version_0_2_is_read():
    saved = digits.get_config().to_dict()
    del saved["loss"]["hold_gradient_ratios"]
    saved["loss"]["hold_shares"] = True
    saved["schedule"]["boundaries"] = [3]  # of another schedule
    saved["loss"] |= {"terms": {"gini": 0.25, "kl": 0.5}, "options": {}, "kl_target": "present"}
    config = from_saved(saved)
    check_config(config, 1)
    expected = digits.get_config()
    expected.loss.hold_gradient_ratios = True
    expected.loss.terms.kl.target = "present"
    expected.loss.terms.gini.weight = 0.25
    assert config.to_dict() == expected.to_dict()


def test_nested_tuples_may_be_the_lists_of_a_saved_config():
    config = default_config()
    set_model(config, "mobilenet_v2")
    config.model.stages = [list(stage) for stage in config.model.stages]
    config.loss.layers = ("last",)
    check_config(config, 1)


@pytest.mark.parametrize("objective", PRESETS)
def test_a_preset_sets_its_terms(objective):
    config = default_config(objective)
    check_config(config, 1)
    weights = {name: section.weight for name, section in config.loss.terms.items()}
    assert weights == PRESETS[objective]
    assert set(config.loss.terms) <= set(TERMS)


def test_a_typo_in_a_config_file_is_refused_with_the_nearest_name():
    config = default_config()
    with config.unlocked():
        config.loss.start_epohc = 3
    with pytest.raises(InputError, match=r"did you mean 'loss\.start_epoch'"):
        check_keys(config)
    config = default_config()
    with config.unlocked():
        config.loss.gini_weight = 3.0
    with pytest.raises(InputError, match=r"it is now loss\.terms\.gini"):
        check_keys(config)
    config = default_config()
    with config.unlocked():
        config.loss.terms.giny = 3.0
    with pytest.raises(InputError, match="did you mean 'gini'"):
        check_keys(config)
    config = default_config()
    with config.unlocked(), config.ignore_type():
        config.batch_size = "64"
    with pytest.raises(InputError, match="batch_size='64' has type str; it needs type int"):
        check_config(config, 1)


def test_terms_of_the_command_line_name_the_objective():
    config = changed(digits.get_config("gini"), {"loss.terms.kl": 0.1})
    assert config.objective == "gini_kl"
    config = changed(digits.get_config("ce"), {"loss.terms.renyi": 0.1})
    assert config.loss.terms.to_dict() == {"renyi": {"weight": 0.1}}
    config = changed(digits.get_config("gini_kl"), {"loss.terms.kl": 0})
    assert config.objective == "gini"
    config = changed(digits.get_config("gini_kl"), {"objective": "ce"})
    assert config.loss.terms.to_dict() == {}


def test_another_network_of_the_command_line_brings_its_own_settings():
    config = changed(digits.get_config(), {"model.name": "cvt13"})
    assert "stem" not in config.model
    assert config.model.drop_path == 0.1
    check_config(config, 1)


@pytest.mark.slow
def test_the_command_line_names_another_network_and_its_settings(tmp_path):
    settings = ("--config.model.name=cvt13", "--config.model.drop_path=0.25")
    widths = ("--config.model.widths", "(32,96,160)", "--config.model.heads=(1,3,5)")
    settings += ("--config.loss.layers=('stage3',)", "--config.model.remat=1")
    common = ("--mode=summary", "--config.seed=1", "--config=digits", f"--workdir={tmp_path}/a")
    out, _ = Program(*common, *settings, *widths, cwd=tmp_path).finish()
    assert "stage3  1 x 160" in out
    _, err = Program(*common, *settings, "--config.model.stem=cifar", cwd=tmp_path).finish(status=1)
    assert "unknown setting 'model.stem': it is one of resnet17" in err
    assert "model.name is 'cvt13'" in err


def test_settings_without_effect_are_said():
    config = default_config("ce")
    config.loss.running_decay = 0.5
    assert "loss.running_decay=0.5 has no effect" in notes_on(config)
    assert notes_on(digits.get_config()) == []
    config = default_config()
    config.model.init = "weights.pth"
    assert "dataset.mean=imagenet" in notes_on(config)[0]


def test_a_setting_of_another_component_is_unknown():
    config = default_config()
    with pytest.raises(InputError, match=r"'schedule\.factor': it is one of step, and"):
        changed(config, {"schedule.factor": 0.1})
    with pytest.raises(InputError, match=r"'optimizer.momentum': it is one of sgd"):
        changed(config, {"optimizer.momentum": 0.5, "optimizer.name": "adam"})
    config.schedule.name = "constant"  # without what it brings
    with pytest.raises(InputError, match=r"'schedule.final'.*set_component\(config"):
        check_keys(config)


@pytest.mark.parametrize(
    ("value", "text"),
    [(("ce",), "'ce' must have type int"), ((2, 0), "must lie in"), ((1.5,), "must have type int")],
)
def test_the_parts_of_a_tuple_are_checked(value, text):
    config = default_config()
    config.model.blocks = value
    with pytest.raises(InputError, match=text):
        check_config(config, 1)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("*.py")))
def test_shipped_configs_are_found_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = f"{ROOT}/configs/{name}.py"
    for given in (name, f"{name}.py", f"configs/{name}.py"):
        assert config_path(f"{given}:ce") == f"{expected}:ce"
    with pytest.raises(InputError, match="did you mean"):
        config_path(f"{name}x")


def test_urls_are_refused_and_home_is_resolved(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(storage_path("--workdir", "~/x")) == "/home/someone/x"
    for url in ("gs:/b/x", "s3:/b/x", "file:/x", "hdfs://x/y"):
        with pytest.raises(InputError, match=r"as gs://BUCKET/FOLDER or s3://BUCKET/FOLDER$"):
            storage_path("dataset.data_dir", url)
    for url in ("gs://", "gs:///x", "foo://a/b"):
        with pytest.raises(InputError, match=r"a bucket as gs://BUCKET/FOLDER$"):
            run_path("--workdir", url)


def test_evaluation_needs_no_batch_that_devices_divide():
    config = tiny.get_config()
    config.eval_batch_size = 7
    check_config(config, num_devices=4)


@pytest.mark.slow
def test_after_a_nan_before_any_checkpoint_the_workdir_takes_another_learning_rate(tmp_path):
    config = dense.get_config("ce")
    config.num_epochs, config.schedule.learning_rate = 1, 1e30
    with pytest.raises(RunError, match=r"not finite[\s\S]*In the same workdir, lower"):
        train(config, tmp_path, devices=jax.devices()[:1])
    config.schedule.learning_rate = 0.01
    assert train(config, tmp_path, devices=jax.devices()[:1])["epochs"] == 1
    config.eval_every_epochs = 5  # how it is looked at, not what it is
    train(config, tmp_path, devices=jax.devices()[:1])


@pytest.mark.slow
def test_what_is_given_is_applied_on_a_finished_run_or_refused(tmp_path):
    config = tiny.get_config("ce")
    config.num_epochs = 1
    train(config, tmp_path / "run", devices=jax.devices()[:1])
    workdir = f"--workdir={tmp_path / 'run'}"
    wrong = Program("--mode=eval", workdir, "--config.dataset.test_split=nosuch", cwd=tmp_path)
    assert "digits has its own splits" in wrong.finish(status=1)[1]
    useless = Program("--mode=eval", workdir, "--config.optimizer.momentum=0.5", cwd=tmp_path)
    assert "optimizer.momentum has no effect in --mode=eval" in useless.finish(status=1)[1]
    good = Program("--mode=eval", workdir, "--split=val", "--step=18", cwd=tmp_path)
    assert "evaluating step 18" in good.finish()[0]
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["split"] == "val"
    other = Program("--mode=eval", workdir, "--config=digits", cwd=tmp_path)
    assert "model.width: 8 there, 16 now" in other.finish(status=1)[1]
    same = Program(
        "--mode=eval", workdir, f"--config={ROOT}/tests/helpers/tiny.py:kl", cwd=tmp_path
    )
    assert "evaluating step" in same.finish()[0]
    report = Program("--mode=report", workdir, "--config.seed=5", cwd=tmp_path)
    assert "seed has no effect in --mode=report" in report.finish(status=1)[1]
    assert "Traceback" not in wrong.err + useless.err + good.err + other.err + report.err


def test_flattened_gives_every_path_once():
    config = default_config()
    assert set(flattened(config)) == set(SETTINGS.of(config))
    assert {"resnet18", "cvt13"} <= set(MODELS)


def test_a_network_whose_features_are_all_dead_is_tested_like_any_other():
    import numpy as np

    from gini_jax.data.source import Split
    from gini_jax.evals import SplitOutputs
    from gini_jax.training.result import _for_pictures

    dead = np.zeros((9, 20))
    outputs = SplitOutputs(np.zeros((9, 2)), dead, {"x": dead}, np.zeros(9))
    images = Split(np.zeros((9, 8, 8, 3), np.uint8), np.zeros(9))
    arrays = _for_pictures(outputs, images, {"impurity/x": np.ones(20)})
    assert arrays["fired_images"].shape == (16, 8, 8, 8, 3)


def test_ratios_to_a_cross_entropy_without_weight_cannot_be_held():
    config = default_config("gini_kl")
    config.loss.update(hold_gradient_ratios=True, ce_weight=0.0)
    with pytest.raises(
        InputError, match=r"ce_weight=0; set --config\.loss\.hold_gradient_ratios=False"
    ):
        check_config(config, 1)


def test_a_config_is_whole_whatever_was_imported_before():
    program = "from gini_jax.config import default_config; print(*default_config('gini'))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == set(default_config("gini"))
