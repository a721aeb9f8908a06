"""Runs that are killed, stopped, damaged or divided over processes, from the command line."""

import json
import os
import random
import signal
import socket
import time

import pytest

from gini_jax.training.lock import lock
from tests.helpers.program import Program
from tests.helpers.runs import cut_in_half, lines_of, steps_of, without_times

SMALL = [
    "--config=tests/helpers/tiny.py",
    "--config.checkpoint_every_minutes=0.005",
    "--config.log_every_steps=5",  # their lines come back as those of epochs do
]


def start(workdir, *arguments, **options):
    return Program(f"--workdir={workdir}", *SMALL, *arguments, **options)


def ends_of(workdir):
    """result.json and metrics.jsonl, times aside."""
    result = json.loads((workdir / "result.json").read_text())
    return [without_times(result), *lines_of(workdir)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    start(workdir).finish()
    return ends_of(workdir)


@pytest.mark.slow
def test_killed_at_six_random_moments_a_run_comes_to_the_same_end(undisturbed, tmp_path):
    rng = random.Random(0)
    for _ in range(6):
        process = start(tmp_path)
        process.until_training()
        time.sleep(rng.uniform(0, 2))
        process.kill()
        if (tmp_path / "result.json").exists():
            break
    start(tmp_path).finish()
    assert ends_of(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_run_lives_through_signals_a_full_disk_and_a_damaged_checkpoint(undisturbed, tmp_path):
    """One after the other, and in the end it comes to what an undisturbed one does."""
    for number, seconds in ((signal.SIGTERM, 0.6), (signal.SIGINT, 0.3)):
        process = start(tmp_path)
        process.until_training()
        time.sleep(seconds)
        process.signal(number)
        sent = time.monotonic()
        out, _ = process.finish(128 + number)
        assert time.monotonic() - sent < 10
        assert f"stopped after step {steps_of(tmp_path)[-1]}, saved" in out
    before = steps_of(tmp_path)
    _, err = start(tmp_path, limit_kib=8).finish(1)  # for a full disk: no large file
    assert "could not be written: " in err
    assert "MiB are free there" in err
    assert set(before) <= set(steps_of(tmp_path))
    process = start(tmp_path)
    process.until_training()
    process.kill()
    *_, older, newest = steps_of(tmp_path)
    cut_in_half(tmp_path / "checkpoints" / str(newest))
    out, err = start(tmp_path).finish()
    assert f"checkpoint {newest} is damaged" in err
    assert f"at step {older}" in out
    assert ends_of(tmp_path) == undisturbed


def test_a_second_run_on_the_same_workdir_is_refused(tmp_path):
    """That of a dead process holds nobody up: above, runs go on after kills."""
    with lock(tmp_path):
        _, err = start(tmp_path).finish(1)
    assert f"process {os.getpid()} on {socket.gethostname()}" in err


# ------------------------------------------------------------- two processes


def two_processes(workdir, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            workdir,
            f"--coordinator_address=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={i}",
            *arguments,
        )
        for i in range(2)
    ]


@pytest.mark.slow
def test_two_processes_end_like_one(undisturbed, tmp_path):
    """Each reads its own part of the batches."""
    for process in two_processes(tmp_path, "--config.dataset.feed=stream"):
        process.finish()
    both = ends_of(tmp_path)
    assert abs(both[0]["test_loss"] - undisturbed[0]["test_loss"]) < 1e-3
    assert len(both) == len(undisturbed)  # process 0 alone writes


@pytest.mark.slow
def test_if_one_of_two_processes_dies_the_other_ends_and_the_run_goes_on_alone(
    undisturbed, tmp_path
):
    """With an error, within a minute; the rest on one process, from the checkpoint of two."""
    first, second = two_processes(tmp_path)
    first.until(lambda: len(steps_of(tmp_path)) >= 2)
    second.kill()
    died = time.monotonic()
    assert first.wait(timeout=100) != 0
    assert time.monotonic() - died < 60
    assert not (tmp_path / "result.json").exists()
    start(tmp_path).finish()
    alone = ends_of(tmp_path)
    assert abs(alone[0]["test_loss"] - undisturbed[0]["test_loss"]) < 1e-3
    assert len(alone) == len(undisturbed)
