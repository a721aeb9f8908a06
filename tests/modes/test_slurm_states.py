"""What Slurm says of a job, told apart; its commands are stood in for by scripts."""

import json

import pytest

from gini_jax.errors import Busy, RunError
from gini_jax.modes.executors import slurm
from gini_jax.modes.members import Member
from tests.helpers import tiny


def command(folder, name, text, status=0, error=""):
    path = folder / name
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\necho '{error}' >&2\nexit {status}\n")
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A member whose job, 7_0, was submitted before."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "ce-seed0.json").write_text(json.dumps({"job": "7_0"}))
    return programs


def outcome(workdir):
    members = [Member("ce-seed0", tiny.get_config("ce"), {})]
    ((_, error),) = slurm.run(members, workdir, print, retries=0, wait=False)
    return error


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("CANCELLED", "job 7_0 was cancelled"),
        ("TIMEOUT", "reached its time limit; raise --slurm.time"),
        ("NODE_FAIL", "its node failed"),
        ("OUT_OF_MEMORY", "ran out of memory; give more, such as --slurm.options=mem=32G"),
        ("COMPLETED", "ended without a result"),
    ],
)
def test_each_end_of_a_job_has_its_words_and_is_told_once(word, text, cluster, tmp_path):
    command(cluster, "squeue", f"7_0|{word}")
    error = outcome(tmp_path)
    assert isinstance(error, RunError) and text in str(error)
    assert not list((tmp_path / "slurm").glob("*.json"))  # so the next call submits it again


def test_a_fault_of_the_run_is_named_with_the_end_of_its_log(cluster, tmp_path):
    command(cluster, "squeue", "7_0|FAILED")
    said = {"job": "7_0", "error": "RunError: the loss is not finite", "busy": False}
    (tmp_path / "slurm" / "ce-seed0.error.json").write_text(json.dumps(said))
    (tmp_path / "ce-seed0").mkdir()
    (tmp_path / "ce-seed0" / "log.txt").write_text("epoch 1\nepoch 2\n")
    assert "the loss is not finite" in (text := str(outcome(tmp_path)))
    assert "log.txt:\n    epoch 1\n    epoch 2" in text


def test_a_job_that_squeue_has_forgotten_is_looked_up_in_the_accounts(cluster, tmp_path):
    command(cluster, "squeue", "", 1, "slurm_load_jobs error: Invalid job id specified")
    command(cluster, "sacct", "7_0|CANCELLED by 0")
    assert "was cancelled" in str(outcome(tmp_path))


def test_a_running_job_says_how_far_it_is(cluster, tmp_path):
    command(cluster, "squeue", "7_0|RUNNING")
    (tmp_path / "ce-seed0").mkdir()
    line = {"epoch": 2, "images_per_second": 1234.4}
    (tmp_path / "ce-seed0" / "metrics.jsonl").write_text(json.dumps(line) + '\n{"epo')
    error = outcome(tmp_path)
    assert isinstance(error, Busy)
    assert str(error) == "runs as job 7_0: epoch 3 of 6, 1,234 images/s"


def test_a_cluster_that_does_not_answer_loses_no_job(cluster, tmp_path):
    command(cluster, "squeue", "", 1, "Unable to contact slurm controller")
    with pytest.raises(RunError, match=r"Unable to contact.*not affected"):
        outcome(tmp_path)
    assert (tmp_path / "slurm" / "ce-seed0.json").exists()
