"""Sweeps: their members, kills, failures, folders, and their report."""

import json
import shlex
import shutil
from functools import partial
from pathlib import Path

import jax
import pandas as pd
import pytest

from gini_jax.analysis.report import write_report
from gini_jax.analysis.runs import read_runs
from gini_jax.config.change import set_component, set_term
from gini_jax.errors import InputError
from gini_jax.modes.executors.member import run_member
from gini_jax.modes.members import member_command, members_of, seeds_of
from gini_jax.modes.sweep import main as sweep
from gini_jax.modes.train import main as train
from gini_jax.training import step
from gini_jax.training.workdir import check_workdir, config_json, holds_result
from tests.helpers import dense, tiny
from tests.helpers.program import Program
from tests.helpers.runs import lines_of, without_times


def weights_of(config):
    return {name: section.weight for name, section in config.loss.terms.items()}


def test_every_combination_is_a_member_and_a_weight_varies_where_its_term_is():
    vary = ["loss.terms.gini=0.1,1", "loss.layers=('stage1',),('stage2',)"]
    members = members_of(tiny.get_config(), ["ce", "gini_kl"], [0, 1], vary)
    names = [member.name for member in members]
    assert len(names) == len(set(names)) == 2 * (2 + 4)
    assert "gini_kl-loss.terms.gini=0.1-loss.layers=stage2-seed1" in names
    config = members[names.index("gini_kl-loss.terms.gini=0.1-loss.layers=stage2-seed1")].config
    assert weights_of(config) == {"gini": 0.1, "kl": 0.5}
    assert tuple(config.loss.layers) == ("stage2",)
    assert (config.seed, config.objective) == (1, "gini_kl")


def test_a_member_whose_setting_is_a_path_has_one_folder():
    members = members_of(tiny.get_config(), ["ce"], [0], ["model.init=runs/a,runs/b"])
    names = ["ce-model.init=runs_a-seed0", "ce-model.init=runs_b-seed0"]
    assert [member.name for member in members] == names


def test_a_long_value_has_a_name_that_a_folder_may_have():
    vary = [f"dataset.data_dir='{'x/' * 200}a','{'x/' * 200}b'"]
    names = [member.name for member in members_of(tiny.get_config("ce"), ["ce"], [0], vary)]
    assert len(set(names)) == 2 and max(map(len, names)) < 120


def test_weights_of_the_config_hold_in_every_objective_that_has_the_term():
    config = tiny.get_config("gini_kl")
    config.loss.terms.gini.weight = 0.1
    members = members_of(config, ["ce", "gini", "kl", "gini_kl", "renyi_kl"], [0], [])
    assert [weights_of(member.config) for member in members] == [
        {},
        {"gini": 0.1},
        {"kl": 0.5},
        {"gini": 0.1, "kl": 0.5},
        {"renyi": 0.1, "kl": 0.5},
    ]
    shared = [
        "--config=tests/helpers/tiny.py",
        "--config.loss.terms.gini=0.1",
        "--config.num_epochs=3",
    ]
    for member in members:
        command = shlex.split(member_command(member, Path("runs"), shared))
        weights = [arg for arg in command if "loss.terms" in arg]
        assert weights == [
            f"--config.loss.terms.{name}={weight}"
            for name, weight in weights_of(member.config).items()
        ]
        assert "--config.num_epochs=3" in command
    config.loss.terms.gini.weight, config.objective = 0.0, "kl"
    with pytest.raises(InputError, match="takes the term gini out of the objectives"):
        members_of(config, ["kl", "gini_kl"], [0], [])


def test_a_composition_without_a_preset_can_be_swept():
    config = tiny.get_config("gini_kl")
    set_term(config, "entropy", weight=0.2)
    assert config.objective == "gini_kl_entropy"
    shared = ["--config=tests/helpers/tiny.py", "--config.loss.terms.entropy=0.2"]
    ours, ce = members_of(config, ["gini_kl_entropy", "ce"], [0], [])
    assert weights_of(ours.config) == {"gini": 0.5, "kl": 0.5, "entropy": 0.2}
    assert "--config=tests/helpers/tiny.py " in member_command(ours, Path("runs"), shared)
    assert weights_of(ce.config) == {}
    with pytest.raises(InputError, match=r"loss.terms.entropy=0.2 has no effect.*--objectives"):
        members_of(config, ["ce", "kl"], [0], [])


@pytest.mark.parametrize(
    ("objectives", "vary", "text"),
    [
        (["ec"], [], "unknown objective 'ec'"),
        (["ce"], ["num_epoch=1,2"], "did you mean 'num_epochs'"),
        (["ce"], ["num_epochs=1,two"], "num_epochs='two' has type str; it needs type int"),
        (["ce"], ["num_epochs"], "--vary=num_epochs gives no value; give some, as in"),
        (["ce"], ["seed=1,2"], "seed cannot be varied here; use --seeds"),
        (["ce"], ["loss.terms.gini=0.1,0.2"], "no objective of the sweep .ce. has the term gini"),
        (["gini"], ["loss.terms.gini=1", "loss.terms.gini=2"], "loss.terms.gini is varied twice"),
        (["ce"], ["model.name=resnet50,cvt13"], "one sweep per network"),
    ],
)
def test_wrong_members_are_refused_before_any_runs(objectives, vary, text):
    with pytest.raises(InputError, match=text):
        members_of(tiny.get_config(), objectives, [0], vary)
    with pytest.raises(InputError, match="whole numbers"):
        seeds_of("0,one")


# ------------------------------------------------------------- runs


def start(workdir, *arguments, config="tests/helpers/tiny.py"):
    return Program("--mode=sweep", f"--config={config}", f"--workdir={workdir}", *arguments)


ONE_EPOCH = ("--config.num_epochs=1", "--config.loss.start_epoch=1")
TWO_BY_TWO = ("--objectives=ce,gini_kl", "--seeds=0,1", *ONE_EPOCH)


@pytest.mark.slow
def test_a_sweep_that_was_killed_ends_like_an_undisturbed_one_and_its_report_is_whole(tmp_path):
    given = (*TWO_BY_TWO, "--config.report=True")
    process = start(tmp_path, *given)
    process.until((tmp_path / "gini_kl-seed0" / "metrics.jsonl").exists)
    process.kill()
    first = (tmp_path / "ce-seed0" / "result.json").stat().st_mtime_ns
    _, err = start(tmp_path, *given).finish()
    assert "4 of 4 members done" in err, err[-2000:]
    assert (tmp_path / "ce-seed0" / "result.json").stat().st_mtime_ns == first  # not run again
    config = tiny.get_config("gini_kl")
    config.num_epochs = config.loss.start_epoch = 1
    alone = train(config, tmp_path / "alone", devices=jax.devices()[:1])
    killed = json.loads((tmp_path / "gini_kl-seed0" / "result.json").read_text())
    assert without_times(killed) == without_times(alone)
    table = pd.read_csv(tmp_path / "sweep.csv").set_index("member")
    assert table.loc["gini_kl-seed0", "test_loss"] == pytest.approx(alone["test_loss"], rel=1e-12)
    assert list(table.index) == ["ce-seed0", "gini_kl-seed0", "ce-seed1", "gini_kl-seed1"]
    assert "Test accuracy" in (tmp_path / "sweep.md").read_text()
    page = (tmp_path / "report.html").read_text()
    for part in (
        "Results",
        "Against cross-entropy",
        "Training",
        "Impurity of the features",
        "Features by class",
        "Which classes the features serve",
        "Test images in feature space",
        "What activates the features: gini_kl",
        "Confusion: ce",
    ):
        assert f"<h2>{part}</h2>" in page
    for outside in ('src="http', "<script src", "@import", 'href="http'):
        assert outside not in page
    assert page.count("<svg") + page.count("<img") >= 8


def test_a_member_that_cannot_run_is_named_and_the_others_finish(tmp_path):
    run = partial(start, tmp_path, config="tests/helpers/dense.py")
    vary = "--vary=optimizer.weight_decay=0.0,1e38"
    arguments = ("--objectives=ce", "--config.seed=3", "--config.num_epochs=1", vary)
    _, err = run(*arguments).finish(status=1)
    assert "1 of 2 members failed" in err
    good, bad = (f"ce-optimizer.weight_decay={x}" for x in ("0.0", "1e+38"))
    assert f"{bad}-seed3: RunError: " in err and "not finite" in err
    assert list(pd.read_csv(tmp_path / "sweep.csv")["member"]) == [f"{good}-seed3"]
    report = read_runs(tmp_path)  # of the members in sweep.csv alone
    shutil.copytree(tmp_path / f"{good}-seed3", tmp_path / "ce-model.width=9-seed3")
    assert list(read_runs(tmp_path)) == list(report) == [good]
    spaced = ("--objectives", "ce", "--vary", "model.width=8,16", "--config.seed", "3")
    shown, _ = run(*spaced, "--config.num_epochs=1", "--dry_run").finish()
    commands = shown.strip().splitlines()
    assert all("--vary" not in x and "model.width=8,16" not in x for x in commands)
    assert len(commands) == 2
    assert "--config=tests/helpers/dense.py:ce" in commands[0]
    assert "--config.model.width=8" in commands[0]
    wrong = ("--objectives=ce", "--vary=model.width=8,0", "--config.num_epochs=1", "--dry_run")
    _, err = run(*wrong).finish(status=1)
    assert "ce-model.width=0-seed0, a member of this sweep: model.width=0" in err
    assert json.loads((tmp_path / f"{good}-seed3" / "result.json").read_text())


def test_a_sweep_and_a_run_do_not_share_a_folder(tmp_path, monkeypatch):
    config = tiny.get_config("ce")
    config.num_epochs = 1
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(config_json(config))
    with pytest.raises(InputError, match=r"--workdir=.*run_sweep"):
        sweep(config, tmp_path / "run")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.csv").write_text("member\n")
    with pytest.raises(InputError, match="holds a sweep"):
        train(config, tmp_path / "sweep", devices=jax.devices()[:1])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="runs in one process"):
        sweep(config, tmp_path / "sweep")


def test_a_result_of_other_settings_is_refused_before_any_member_runs(tmp_path):
    """Although its checkpoints are gone."""
    config = tiny.get_config("ce")
    member = members_of(config, ["ce"], [1], [])[0]
    folder = tmp_path / member.name
    folder.mkdir()
    (folder / "config.json").write_text(config_json(member.config))
    (folder / "result.json").write_text("{}")
    config.batch_size = 32
    with pytest.raises(InputError, match="batch_size: 64 there, 32 now"):
        sweep(config, tmp_path, seeds="0,1")
    assert not (tmp_path / "ce-seed0").exists()


def test_settings_that_an_objective_does_not_read_leave_its_finished_runs_alone(tmp_path):
    """Cross-entropy alone does not read where the terms start; the terms do."""
    for objective in ("ce", "gini"):
        config = tiny.get_config(objective)
        (member,) = members_of(config, [objective], [0], [])
        folder = tmp_path / member.name
        folder.mkdir()
        (folder / "config.json").write_text(config_json(member.config))
        (folder / "result.json").write_text("{}")
        member.config.loss.update(start_epoch=4, ramp_epochs=2.0)
        if objective == "ce":
            check_workdir(folder, member.config)
            member.config.optimizer.momentum = 0.5
            with pytest.raises(InputError, match=r"config:\n  optimizer.momentum: 0.9 there"):
                check_workdir(folder, member.config)
        else:
            with pytest.raises(InputError, match=r"loss\.start_epoch: 2 there, 4 now"):
                check_workdir(folder, member.config)


def test_checkpoints_without_their_config_are_not_continued(tmp_path):
    (tmp_path / "checkpoints" / "408").mkdir(parents=True)
    with pytest.raises(InputError, match=r"checkpoints but no config\.json"):
        train(tiny.get_config("ce"), tmp_path, devices=jax.devices()[:1])


def test_a_folder_without_a_finished_run_has_no_report(tmp_path):
    with pytest.raises(InputError, match="holds no finished run"):
        write_report(tmp_path)


@pytest.mark.slow
def test_members_of_fewer_epochs_are_not_finished(tmp_path):
    """A sweep repeated with more epochs extends them, where the schedule allows it."""
    config = tiny.get_config("ce")
    set_component(config, "schedule", "constant")
    config.num_epochs = 1
    (member,) = members_of(config, ["ce"], [0], [])
    run_member(member.config, tmp_path)
    assert holds_result(tmp_path, member.config)
    config.num_epochs = 2
    (longer,) = members_of(config, ["ce"], [0], [])
    assert not holds_result(tmp_path, longer.config)
    run_member(longer.config, tmp_path)
    assert holds_result(tmp_path, longer.config)
    assert json.loads((tmp_path / "result.json").read_text())["epochs"] == 2
    config.early_stopping_epochs = 1
    (same_end,) = members_of(config, ["ce"], [0], [])
    assert holds_result(tmp_path, same_end.config)


@pytest.mark.slow
def test_a_member_that_stopped_early_goes_on_with_more_patience(tmp_path):
    config = tiny.get_config("ce")
    config.update_from_flattened_dict(
        {"schedule.learning_rate": 1e-9, "early_stopping_epochs": 2, "num_epochs": 6}
    )
    (member,) = members_of(config, ["ce"], [0], [])
    run_member(member.config, tmp_path)
    stopped_at = json.loads((tmp_path / "result.json").read_text())["epochs"]
    assert stopped_at < 6 and holds_result(tmp_path, member.config)
    config.early_stopping_epochs = 3
    (patient,) = members_of(config, ["ce"], [0], [])
    assert not holds_result(tmp_path, patient.config)
    run_member(patient.config, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["epochs"] > stopped_at


@pytest.mark.slow
def test_seeds_share_their_programs_and_end_like_runs_alone(tmp_path, monkeypatch):
    traced, train_step = [], step.train_step

    def counted(state, batch, **settings):
        traced.append(settings["experiment"].config.objective)
        return train_step(state, batch, **settings)

    monkeypatch.setattr(step, "train_step", counted)
    config = dense.get_config("gini")
    config.update(num_epochs=2, report=False)
    sweep(config.copy_and_resolve_references(), tmp_path, objectives="ce,gini", seeds="0-2")
    assert traced == ["ce", "gini"]
    config.seed = 2
    train(config, tmp_path / "alone")
    assert traced == ["ce", "gini", "gini"]
    member, alone = (tmp_path / name for name in ("gini-seed2", "alone"))
    assert lines_of(member) == lines_of(alone)
    ended = [json.loads((folder / "result.json").read_text()) for folder in (member, alone)]
    assert without_times(ended[0]) == without_times(ended[1])
