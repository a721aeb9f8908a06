"""Sweeps: their statistics against scipy, their members, kills, failures, and their report."""

import gc
import json
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.stats

from gini_jax.analysis.report import write_report
from gini_jax.analysis.runs import Run, read_runs
from gini_jax.analysis.sensitivity import (
    sensitivity,
    varied_alone,
    varied_settings,
    varied_table,
)
from gini_jax.analysis.statistics import compare, detectable, markdown, paired, seeds_needed
from gini_jax.errors import InputError
from gini_jax.modes.sweep import finished, run_member, sweep_markdown
from gini_jax.modes.sweep import main as sweep
from gini_jax.modes.train import main as train
from gini_jax.training.members import member_command, members_of, seeds_of
from gini_jax.training.workdir import config_json
from tests import tiny
from tests.program import Program
from tests.runs import without_times

RNG = np.random.default_rng(0)
BASE = RNG.normal(0.5, 0.02, 8)
OTHERS = {"a": BASE + RNG.normal(0.01, 0.01, 8), "b": BASE + RNG.normal(0, 0.01, 8)}


@pytest.fixture(autouse=True, scope="module")
def small_heap():
    """statsmodels collects garbage at every correction, which is slow in a process with much."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def results():
    groups = {"ce": BASE, **OTHERS}
    rows = [(g, seed, x) for g, values in groups.items() for seed, x in enumerate(values)]
    return pd.DataFrame(rows, columns=["group", "seed", "x"])


def test_the_comparison_equals_scipys_tests(results):
    table = compare(results, "x")
    for name, values in OTHERS.items():
        row = table.loc[name]
        assert row["n"] == 8
        assert row["mean"] == pytest.approx(values.mean())
        assert row["sd"] == pytest.approx(values.std(ddof=1))
        assert row["p_t"] == pytest.approx(scipy.stats.ttest_rel(values, BASE).pvalue)
        assert row["p_wilcoxon"] == pytest.approx(scipy.stats.wilcoxon(values, BASE).pvalue)
        assert row["better"] == (values > BASE).sum()
        difference = values - BASE
        half = scipy.stats.t.ppf(0.975, 7) * difference.std(ddof=1) / np.sqrt(8)
        assert row["t_low"] == pytest.approx(difference.mean() - half)
        assert row["t_high"] == pytest.approx(difference.mean() + half)
        assert row["boot_low"] < difference.mean() < row["boot_high"]
        assert abs(row["boot_low"] - row["t_low"]) < half


def test_holms_correction_is_that_of_its_definition(results):
    table = compare(results, "x").loc[["a", "b"]]
    p = sorted(table["p_t"])
    expected = [min(1, 2 * p[0]), min(1, max(2 * p[0], p[1]))]
    assert sorted(table["holm_t"]) == pytest.approx(expected)


def test_with_one_seed_there_is_no_p_value(results):
    table = compare(results[results["seed"] == 0], "x")
    assert table[["p_t", "holm_t", "p_wilcoxon", "t_low", "boot_low"]].isna().all(axis=None)
    row = next(line for line in markdown(table).splitlines() if line.startswith("| a"))
    assert row.count("| - ") == 6


def test_pairs_are_the_seeds_that_both_have(results):
    table = compare(results[(results["group"] != "a") | (results["seed"] > 2)], "x")
    difference = OTHERS["a"][3:] - BASE[3:]
    assert table.loc["a", "pairs"] == 5
    assert table.loc["a", "difference"] == pytest.approx(difference.mean())


def test_smaller_may_be_better(results):
    better = compare(results, "x", larger_is_better=False).loc["a", "better"]
    assert better == (OTHERS["a"] < BASE).sum()


def test_equal_runs_have_no_test():
    found = paired([0.1, 0.1, 0.1])
    assert found["difference"] == pytest.approx(0.1)
    assert np.isnan(found["p_t"])


def test_the_number_of_seeds_gives_the_power_that_it_promises():
    effect = np.array([0.5, 1.5, -0.5, 0.5, 1.0, 0.0])
    n = seeds_needed(effect)
    d = effect.mean() / effect.std(ddof=1)
    draws = RNG.normal(d, 1, (20_000, n))
    p = scipy.stats.ttest_1samp(draws, 0, axis=1).pvalue
    assert abs((p < 0.05).mean() - 0.8) < 0.03


def test_the_detectable_difference_is_seen_with_the_power_that_it_promises():
    """By the noncentral t distribution."""
    difference = OTHERS["a"] - BASE
    n, sd = len(difference), difference.std(ddof=1)
    shift = detectable(difference) / sd * np.sqrt(n)
    critical = scipy.stats.t.ppf(0.975, n - 1)
    power = scipy.stats.nct.sf(critical, n - 1, shift) + scipy.stats.nct.cdf(
        -critical, n - 1, shift
    )
    assert power == pytest.approx(0.8, abs=1e-4)


# ------------------------------------------------------------- settings


def run_of(config, accuracy):
    result = {"objective": config.objective, "seed": config.seed, "test_accuracy": accuracy}
    return Run(None, "", result, json.loads(config.to_json()), [], {})


def varied_runs():
    """Two seeds of `ce`, and of `gini_kl` with three weights and two choices of layers."""
    vary = ["loss.terms.gini=0.05,0.5,5.0"]
    members = members_of(tiny.get_config(), ["ce", "gini_kl"], [0, 1], vary)
    members += members_of(tiny.get_config(), ["gini_kl"], [0, 1], ["loss.layers=('stage1',)"])
    accuracies = np.random.default_rng(1).uniform(0.4, 0.5, len(members))
    groups = {}
    for member, accuracy in zip(members, accuracies, strict=True):
        group = member.name.rpartition("-seed")[0]
        groups.setdefault(group, []).append(run_of(member.config, accuracy))
    return groups


def test_only_what_a_sweep_varies_is_a_varied_setting():
    assert varied_settings(varied_table(varied_runs())) == [
        "config.loss.layers",
        "config.loss.terms.gini",
    ]
    same = {"ce": [run_of(tiny.get_config("ce"), 0.4)], "kl": [run_of(tiny.get_config("kl"), 0.5)]}
    assert varied_settings(varied_table(same)) == []


def test_a_line_joins_the_means_of_runs_that_differ_in_one_setting():
    groups = varied_runs()
    axes = sensitivity(varied_table(groups)).axes
    by_layer, by_weight = axes
    (line,) = by_weight.containers
    assert line.get_label() == "gini_kl"
    expected = {
        weight: [run.result["test_accuracy"] for run in groups[f"gini_kl-loss.terms.gini={weight}"]]
        for weight in (0.05, 0.5, 5.0)
    }
    np.testing.assert_allclose(line[0].get_xdata().astype(float), list(expected))
    np.testing.assert_allclose(
        line[0].get_ydata().astype(float), [np.mean(x) for x in expected.values()]
    )
    (spread,) = line[2]
    lengths = [np.ptp(segment[:, 1]) for segment in spread.get_segments()]
    np.testing.assert_allclose(lengths, [2 * np.std(x, ddof=1) for x in expected.values()])
    assert [tick.get_text() for tick in by_layer.get_xticklabels()] == ["stage1", "stage2"]
    (dashed,) = [x for x in by_weight.lines if x.get_label() == "ce"]
    ce = np.mean([run.result["test_accuracy"] for run in groups["ce"]])
    np.testing.assert_allclose(dashed.get_ydata(), ce)


def test_no_line_is_left_out_and_settings_that_vary_together_have_no_panel():
    rows = [
        {
            "objective": "kl",
            "seed": 0,
            "test_accuracy": 0.5,
            "config.a": a,
            "config.b": b,
            "config.c": b,
        }
        for a in range(2)
        for b in range(9)
    ]
    (axis,) = [axis for axis in sensitivity(pd.DataFrame(rows)).axes if axis.get_visible()]
    assert axis.get_xlabel() == "a"
    assert len({(line.get_label()) for line in axis.containers}) == 9
    together = pd.DataFrame(rows).query("`config.a` == 0").drop(columns="config.a")
    assert varied_alone(together) == {}


def test_a_sweep_over_a_setting_of_all_compares_within_its_values():
    rng = np.random.default_rng(2)
    rows = [
        {
            "group": f"{objective}-batch_size={size}",
            "seed": seed,
            "test_accuracy": rng.uniform(),
            "config_name": "x",
            "device": "cpu",
            "jax_version": "0",
            "epochs": 1,
        }
        for objective in ("ce", "kl")
        for size in (64, 128)
        for seed in range(3)
    ]
    table = pd.DataFrame(rows)
    text = sweep_markdown(table)
    wide = table.pivot(index="seed", columns="group", values="test_accuracy")
    for size in (64, 128):
        difference = (wide[f"kl-batch_size={size}"] - wide[f"ce-batch_size={size}"]).mean()
        (row,) = [x for x in text.splitlines() if x.startswith(f"| kl-batch_size={size} ")]
        assert f"| {difference:+.4f} |" in row
        assert f"difference to ce-batch_size={size} |" in text
    text = sweep_markdown(table[table["group"] != "ce-batch_size=128"])
    mean = wide["kl-batch_size=128"].mean()
    (row,) = [x for x in text.splitlines() if x.startswith("| kl-batch_size=128 ")]
    assert f"| 3 | {mean:.4f} ± " in row
    assert "Without `ce` of the same settings" in text
    text = sweep_markdown(table[table["group"].str.startswith("ce")])
    difference = (wide["ce-batch_size=128"] - wide["ce-batch_size=64"]).mean()
    assert f"| {difference:+.4f} |" in text


# ------------------------------------------------------------- members


def test_every_combination_is_a_member_and_a_weight_varies_where_its_term_is():
    vary = ["loss.terms.gini=0.1,1", "loss.layers=('stage1',),('stage2',)"]
    members = members_of(tiny.get_config(), ["ce", "gini_kl"], [0, 1], vary)
    names = [member.name for member in members]
    assert len(names) == len(set(names)) == 2 * (2 + 4)
    assert "gini_kl-loss.terms.gini=0.1-loss.layers=stage2-seed1" in names
    config = members[names.index("gini_kl-loss.terms.gini=0.1-loss.layers=stage2-seed1")].config
    assert config.loss.terms.to_dict() == {"gini": 0.1, "kl": 0.5}
    assert tuple(config.loss.layers) == ("stage2",)
    assert (config.seed, config.objective) == (1, "gini_kl")


def test_a_member_whose_setting_is_a_path_has_one_folder():
    members = members_of(tiny.get_config(), ["ce"], [0], ["model.init=runs/a,runs/b"])
    names = ["ce-model.init=runs_a-seed0", "ce-model.init=runs_b-seed0"]
    assert [member.name for member in members] == names


def test_weights_of_the_config_hold_in_every_objective_that_has_the_term():
    config = tiny.get_config("gini_kl")
    config.loss.terms.gini = 0.1
    members = members_of(config, ["ce", "gini", "kl", "gini_kl", "collision_kl"], [0], [])
    assert [member.config.loss.terms.to_dict() for member in members] == [
        {},
        {"gini": 0.1},
        {"kl": 0.5},
        {"gini": 0.1, "kl": 0.5},
        {"collision": 0.5, "kl": 0.5},
    ]
    shared = ["--config=tests/tiny.py", "--config.loss.terms.gini=0.1", "--config.num_epochs=3"]
    for member in members:
        command = shlex.split(member_command(member, Path("runs"), shared))
        weights = [arg for arg in command if "loss.terms" in arg]
        assert weights == [
            f"--config.loss.terms.{name}={weight}"
            for name, weight in member.config.loss.terms.items()
        ]
        assert "--config.num_epochs=3" in command
    config.loss.terms.gini, config.objective = 0.0, "kl"
    with pytest.raises(InputError, match="takes the term gini out of the objectives"):
        members_of(config, ["kl", "gini_kl"], [0], [])


def test_a_composition_without_a_preset_can_be_swept():
    config = tiny.get_config("gini_kl")
    with config.unlocked():
        config.loss.terms.entropy = 0.2
    config.objective = "gini_kl_entropy"
    shared = ["--config=tests/tiny.py", "--config.loss.terms.entropy=0.2"]
    ours, ce = members_of(config, ["gini_kl_entropy", "ce"], [0], [])
    assert ours.config.loss.terms.to_dict() == {"gini": 0.5, "kl": 0.5, "entropy": 0.2}
    assert "--config=tests/tiny.py " in member_command(ours, Path("runs"), shared)
    assert ce.config.loss.terms.to_dict() == {}
    with pytest.raises(InputError, match=r"loss.terms.entropy=0.2 has no effect.*--objectives"):
        members_of(config, ["ce", "kl"], [0], [])


@pytest.mark.parametrize(
    ("objectives", "vary", "text"),
    [
        (["ec"], [], "unknown objective 'ec'"),
        (["ce"], ["num_epoch=1,2"], "did you mean 'num_epochs'"),
        (["ce"], ["num_epochs=1,two"], "is not of type int"),
        (["ce"], ["num_epochs"], "unknown setting in --vary"),
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


def start(workdir, *arguments):
    return Program("--mode=sweep", "--config=tests/tiny.py", f"--workdir={workdir}", *arguments)


ONE_EPOCH = ("--config.num_epochs=1", "--config.loss.start_epoch=1")
TWO_BY_TWO = ("--objectives=ce,gini_kl", "--seeds=0,1", *ONE_EPOCH)


def test_a_sweep_that_was_killed_ends_like_an_undisturbed_one_and_its_report_is_whole(tmp_path):
    process = start(tmp_path, *TWO_BY_TWO)
    process.until((tmp_path / "gini_kl-seed0" / "metrics.jsonl").exists)
    process.kill()
    first = (tmp_path / "ce-seed0" / "result.json").stat().st_mtime_ns
    _, err = start(tmp_path, *TWO_BY_TWO).finish()
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
        "What the numbers say",
        "Against cross-entropy alone",
        "Training",
        "Impurity of the features",
        "Features by class",
        "Which classes the features serve",
        "Test images in feature space",
        "What activates the features: gini_kl",
        "Confusion: ce",
    ):
        assert f"<h2>{part}</h2>" in page
    for outside in ('src="http', "<script", "@import", 'href="http'):
        assert outside not in page
    assert page.count("<svg") + page.count("<img") >= 8


def test_a_member_that_cannot_run_is_named_and_the_others_finish(tmp_path):
    vary = "--vary=model.width=8,0"
    arguments = ("--objectives=ce", "--config.seed=3", "--config.num_epochs=1", vary)
    _, err = start(tmp_path, *arguments).finish(status=1)
    assert "1 of 2 members failed" in err
    assert "ce-model.width=0-seed3: InputError: model.width=0 must lie in [1, inf)" in err
    assert list(pd.read_csv(tmp_path / "sweep.csv")["member"]) == ["ce-model.width=8-seed3"]
    report = read_runs(tmp_path)  # of the members in sweep.csv alone
    shutil.copytree(tmp_path / "ce-model.width=8-seed3", tmp_path / "ce-model.width=9-seed3")
    assert list(read_runs(tmp_path)) == list(report) == ["ce-model.width=8"]
    spaced = ("--objectives", "ce", "--vary", "model.width=8,0", "--config.seed", "3")
    shown, _ = start(tmp_path, *spaced, "--config.num_epochs=1", "--dry_run").finish()
    commands = shown.strip().splitlines()
    assert all("--vary" not in x and "model.width=8,0" not in x for x in commands)
    assert len(commands) == 2
    assert "--config=tests/tiny.py:ce" in commands[0]
    assert "--config.model.width=8" in commands[0]
    assert json.loads((tmp_path / "ce-model.width=8-seed3" / "result.json").read_text())


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


def test_a_folder_without_a_finished_run_has_no_report(tmp_path):
    with pytest.raises(InputError, match="holds no finished run"):
        write_report(tmp_path)


def test_members_of_fewer_epochs_are_not_finished(tmp_path):
    """A sweep repeated with more epochs extends them, where the schedule allows it."""
    config = tiny.get_config("ce")
    config.schedule.name, config.num_epochs = "constant", 1
    (member,) = members_of(config, ["ce"], [0], [])
    run_member(member, tmp_path)
    assert finished(member, tmp_path)
    config.num_epochs = 2
    (longer,) = members_of(config, ["ce"], [0], [])
    assert not finished(longer, tmp_path)
    run_member(longer, tmp_path)
    assert finished(longer, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["epochs"] == 2
