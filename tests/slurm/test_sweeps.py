"""A sweep as an array of jobs on Slurm's nodes."""

import csv
import json
import re
import subprocess

import pytest

from gini_jax.errors import InputError
from gini_jax.modes import report, sweep
from tests.conftest import ROOT
from tests.helpers import tiny
from tests.helpers.program import Program
from tests.helpers.runs import lines_of, steps_of, without_times

TINY = ["--config=tests/helpers/tiny.py:ce"]
SIX = ["--config.checkpoint_every_minutes=0.005", "--config.num_epochs=4", "--seeds=0-5"]
SLURM = ["--executor=slurm", "--slurm.cpus=1", "--slurm.time=20", "--slurm.partition=all"]


@pytest.fixture
def submitit():
    return pytest.importorskip("submitit", reason="needs submitit, which submits the jobs")


def start(workdir, *arguments):
    return Program("--mode=sweep", *TINY, f"--workdir={workdir}", *arguments)


def submitted(cluster):
    jobs = cluster.ask("squeue", "-h", "-r", "-t", "all", "-n", "gini_jax", "-o", "%i")
    return sorted(jobs.split())


def same_members(one, other, seeds):
    """Results, lines and tables of two sweeps are equal, times aside."""
    for seed in seeds:
        folders = [workdir / f"ce-seed{seed}" for workdir in (one, other)]
        results = [json.loads((folder / "result.json").read_text()) for folder in folders]
        assert without_times(results[0]) == without_times(results[1])
        assert lines_of(folders[0]) == lines_of(folders[1])
    tables = [
        [
            (row["member"], row["test_loss"])
            for row in csv.DictReader((workdir / "sweep.csv").read_text().splitlines())
        ]
        for workdir in (one, other)
    ]
    assert tables[0] == tables[1] and len(tables[0]) == len(seeds)


@pytest.mark.slow
def test_an_array_equals_a_sweep_in_one_process(cluster, submitit, tmp_path):
    """The short form of the next test."""
    two = ["--seeds=0-1", "--config.num_epochs=2"]
    start(tmp_path / "one", *two).finish()
    _, err = start(tmp_path / "array", *SLURM, *two, "--wait").finish()
    assert "submitted 2 members as job" in err
    same_members(tmp_path / "one", tmp_path / "array", (0, 1))


@pytest.mark.slow
def test_an_array_of_which_one_is_preempted_and_one_fails_equals_a_sweep_in_one_process(
    cluster, submitit, tmp_path
):
    one, array = tmp_path / "one", tmp_path / "array"
    for workdir in (one, array):  # seed 3 cannot save itself
        (workdir / "ce-seed3").mkdir(parents=True)
        (workdir / "ce-seed3" / "checkpoints").write_text("")
    _, err = start(one, *SIX).finish(1)
    assert "1 of 6 members failed" in err

    array_of_six = [array, *SIX, *SLURM, "--retries=1"]
    out, err = start(*array_of_six).finish()
    assert "submitted 6 members as job" in err
    assert "call this again" in out
    there = submitted(cluster)
    number = re.search(r"members as job (\d+)", err).group(1)
    jobs = [job for job in there if job.startswith(f"{number}_")]
    _, err = start(*array_of_six).finish()  # nothing is missing
    assert submitted(cluster) == there and len(jobs) == 6
    assert "ce-seed0 runs as job" in err or "ce-seed0 is pending" in err

    cluster.until(lambda: steps_of(array / "ce-seed0"))
    (node,) = cluster.ask("squeue", "-h", "-j", jobs[0], "-o", "%N").split()
    cluster.ask("srun", "--partition=urgent", "--exclusive", f"--nodelist={node}", "true")
    _, err = start(*array_of_six, "--wait").finish(1, timeout=600)
    assert "1 of 6 members failed" in err
    assert "ce-seed3" in err.split("members failed")[1] and "the end of" in err
    shown = cluster.ask("scontrol", "-o", "show", "job", jobs[0].partition("_")[0]).splitlines()
    done = [text for text in shown if "JobState=COMPLETED" in text]
    assert len(done) == 5
    assert any("Restarts=1" in text for text in done)  # the preempted one

    same_members(one, array, (0, 1, 2, 4, 5))


@pytest.mark.slow
def test_a_cancelled_member_is_told_apart_and_can_be_run_again(cluster, submitit, tmp_path):
    few = ["--seeds=0-1", "--config.num_epochs=100000"]
    start(tmp_path, *SLURM, *few).finish()
    jobs = {seed: job_of(tmp_path, seed) for seed in (0, 1)}
    both = [tmp_path / f"ce-seed{seed}" / "metrics.jsonl" for seed in (0, 1)]
    cluster.until(lambda: all(path.exists() for path in both))
    cluster.ask("scancel", jobs[0])
    cluster.until(lambda: cluster.ask("squeue", "-h", "-j", jobs[0], fails=True) == "")
    _, err = start(tmp_path, *SLURM, *few).finish(1)
    assert f"ce-seed0: RunError: job {jobs[0]} was cancelled" in err
    assert f"ce-seed1 runs as job {jobs[1]}: epoch " in err
    start(tmp_path, *SLURM, *few).finish()
    assert job_of(tmp_path, 0) != jobs[0] and job_of(tmp_path, 1) == jobs[1]


def job_of(workdir, seed):
    return json.loads((workdir / "slurm" / f"ce-seed{seed}.json").read_text())["job"]


@pytest.mark.slow
def test_a_report_shows_members_that_ended_since_the_last_call(tmp_path, monkeypatch):
    """No cluster is needed: what a call has left is as if the members had been jobs."""
    config = tiny.get_config("ce")
    config.num_epochs = 1
    monkeypatch.setattr(sweep, "write_report", lambda workdir: None)
    sweep.main(config, tmp_path, seeds="0-1")
    (tmp_path / "sweep.csv").write_text("\n")  # as after a call before any member ended
    monkeypatch.setattr("gini_jax.analysis.report.write_report", lambda *folders: folders[0])
    report.main(config, tmp_path)
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert [row["member"] for row in rows] == ["ce-seed0", "ce-seed1"]


def test_wrong_options_are_refused_before_anything_is_submitted(cluster, submitit, tmp_path):
    _, err = start(tmp_path, *SIX, *SLURM[:-1], "--slurm.partition=gpu").finish(1)
    assert "sbatch refuses the job" in err and "invalid partition specified: gpu" in err
    assert not list((tmp_path / "slurm").glob("*.json"))
    _, err = start(tmp_path, *SIX, *SLURM, "--slurm.options=account").finish(1)
    assert "--slurm.options=account: write NAME=VALUE" in err


def test_without_slurm_the_error_says_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match=r"sbatch.*login node"):
        sweep.main(tiny.get_config("ce"), tmp_path / "x", executor="slurm")
    assert not (tmp_path / "x").exists()


def test_the_job_script_is_valid_for_the_shell():
    subprocess.run(["bash", "-n", str(ROOT / "deploy" / "slurm.sh")], check=True)
