"""Runs on Slurm's nodes: several processes, signals, requeues, failures of nodes, cancellations."""

import json
import sys
import time

import pytest

from gini_jax.training.lock import lock
from tests.conftest import QUICK, ROOT
from tests.helpers.program import Program
from tests.helpers.runs import lines_of, steps_of, without_times

TINY = ["--config=tests/helpers/tiny.py"]
OFTEN = [*TINY, "--config.checkpoint_every_minutes=0.005"]
SMALL = [*OFTEN, "--config.num_epochs=10"]
TWO_NODES = ["--nodes=2", "--ntasks-per-node=1"]
ONE_NODE = ["--nodes=1", "--ntasks-per-node=1"]


@pytest.fixture(scope="module", autouse=True)
def environment():
    """Jobs get that of the process that submits them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", QUICK)
        patch.setenv("PYTHON", sys.executable)
        patch.chdir(ROOT)
        yield


def submit(cluster, workdir, *arguments, options=TWO_NODES):
    """Submits the job script that the docs give; its nodes have cores alone."""
    own = [*options, "--cpus-per-task=1", "--gpus-per-task=0", f"--output={workdir}.out"]
    return cluster.submit(*own, "deploy/slurm.sh", f"--workdir={workdir}", *arguments)


def said(workdir):
    return workdir.with_suffix(".out").read_text()


def until_saved(cluster, workdir):
    cluster.until(lambda: steps_of(workdir), lambda: said(workdir))


def finish(cluster, job, workdir):
    cluster.until(lambda: cluster.state(job) in ("COMPLETED", "FAILED"), lambda: said(workdir))
    assert cluster.state(job) == "COMPLETED", said(workdir)


def ends_of(workdir):
    result = json.loads((workdir / "result.json").read_text())
    return [without_times(result), *lines_of(workdir)]


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    """A run on two nodes that nothing happens to."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    finish(cluster, submit(cluster, workdir, *SMALL), workdir)
    return ends_of(workdir)


@pytest.mark.slow
def test_two_nodes_end_like_one_process(cluster, tmp_path):
    few = [*TINY, "--config.num_epochs=3"]
    two, one = tmp_path / "two", tmp_path / "one"
    finish(cluster, submit(cluster, two, *few), two)
    Program(f"--workdir={one}", *few).finish()
    nodes, alone = ends_of(two), ends_of(one)
    assert abs(alone[0]["test_loss"] - nodes[0]["test_loss"]) < 1e-3
    assert len(alone) == len(nodes)  # process 0 alone writes


@pytest.mark.slow
def test_two_tasks_of_a_node_have_devices_of_their_own(cluster, undisturbed, tmp_path):
    workdir = tmp_path / "four"
    four = ["--nodes=2", "--ntasks-per-node=2"]
    job = submit(cluster, workdir, *SMALL, options=four)
    cluster.until((workdir / "metrics.jsonl").exists, lambda: said(workdir))
    cluster.until(lambda: lines_of(workdir), lambda: said(workdir))
    cluster.ask("scancel", job)
    assert "parameters, 4 x cpu" in said(workdir)
    first, alone = lines_of(workdir)[0], undisturbed[1]
    assert first["train_loss"] == pytest.approx(alone["train_loss"], abs=1e-3)


@pytest.mark.slow
def test_a_run_lives_through_a_signal_a_requeue_and_a_failed_node(cluster, undisturbed, tmp_path):
    """One after the other, and in the end it comes to what an undisturbed one does.

    The signal is sent as `--signal` sends it before the time limit: to the steps, not to the
    script, which then has the job queued again. After the failure of a node the step on the other
    one ends within a minute.
    """
    workdir = tmp_path / "run"
    job = submit(cluster, workdir, *SMALL)

    def until_new_checkpoints(number=1):
        cluster.until(lambda: cluster.state(job) == "RUNNING", lambda: said(workdir))
        before = steps_of(workdir)[-1:]
        cluster.until(
            lambda: len([x for x in steps_of(workdir) if [x] > before]) >= number,
            lambda: said(workdir),
        )

    until_new_checkpoints()
    cluster.ask("scancel", "--signal=TERM", job)
    cluster.until(lambda: "stopped after step" in said(workdir), lambda: said(workdir))
    cluster.until(lambda: cluster.state(job) == "PENDING", lambda: said(workdir))
    until_new_checkpoints()
    cluster.ask("scontrol", "requeue", job)
    cluster.until(lambda: cluster.state(job) == "PENDING", lambda: said(workdir))
    until_new_checkpoints()
    cluster.kill_node("localhost")
    died = time.monotonic()
    cluster.until(lambda: cluster.state(job) != "RUNNING", lambda: said(workdir))
    assert time.monotonic() - died < 60
    # Orders that the dead node has missed are sent again after a minute. By default Slurm starts a
    # job again after two; here it is queued again sooner, and one would meet the new start.
    cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now+75")
    cluster.start_node("localhost")
    finish(cluster, job, workdir)
    assert ends_of(workdir) == undisturbed


@pytest.mark.slow
def test_time_limits_with_a_signal_and_without_and_a_cancellation(cluster, tmp_path):
    """The limit is moved to now, and noticed within half a minute."""
    workdir = tmp_path / "run"
    long = [*OFTEN, "--config.num_epochs=100000"]
    job = submit(cluster, workdir, *long, options=[*ONE_NODE, "--time=30"])
    until_saved(cluster, workdir)
    cluster.ask("scontrol", "update", f"JobId={job}", "EndTime=now+100")  # --signal=TERM@120
    cluster.until(lambda: said(workdir).count("at step") == 1, lambda: said(workdir))
    saved = steps_of(workdir)[-1]
    assert f"stopped after step {saved}, saved" in said(workdir) or steps_of(workdir)[-1] > saved
    cluster.ask("scontrol", "update", f"JobId={job}", "EndTime=now")
    cluster.until(lambda: cluster.state(job) == "TIMEOUT", lambda: cluster.state(job))
    last = steps_of(workdir)[-1]
    job = submit(cluster, workdir, *long, options=ONE_NODE)
    cluster.until(lambda: f"at step {last}" in said(workdir), lambda: said(workdir))
    cluster.ask("scancel", job)
    cluster.until(lambda: cluster.state(job) == "CANCELLED", lambda: cluster.state(job))
    assert not (workdir / "result.json").exists()
    assert all(path.name.isdigit() for path in (workdir / "checkpoints").iterdir())
    with lock(workdir):
        pass
