"""The members of a sweep as the tasks of one job array on a Slurm cluster, through submitit.

The folder `slurm` of the sweep's workdir holds what submitit writes, and for each member a file
with its job's number. So any later call, on any host, knows what runs, what ended and why, and
submits only what is missing.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import logging
from filelock import FileLock

from gini_jax import devices
from gini_jax.analysis.runs import epochs_of
from gini_jax.config.files import from_saved
from gini_jax.errors import Busy, InputError, RunError, Stopped, first_line
from gini_jax.modes.executors.member import import_path, run_member
from gini_jax.modes.members import Member
from gini_jax.storage import is_remote, write
from gini_jax.training.workdir import config_json, holds_result

FLAGS: dict[str, Any] = {
    "slurm.partition": ("", str, "slurm: the partition; the cluster's default if left out."),
    "slurm.time": ("4:00:00", str, "slurm: the time limit of a member, in a form of sbatch."),
    "slurm.gpus": (0, int, "slurm: GPUs of a member."),
    "slurm.cpus": (0, int, "slurm: cores of a member; the cluster's default if left out."),
    "slurm.max_parallel": (256, int, "slurm: members that run at a time, at most."),
    "slurm.options": (
        [],
        list,
        "slurm: NAME=VALUE for sbatch, such as account=vision or mem=16G; several times.",
    ),
    "retries": (
        2,
        int,
        "slurm: how often a member that failed, was preempted or reached its time limit is queued"
        " again, from its newest checkpoint.",
    ),
    "wait": (False, bool, "slurm: stay until all members have ended."),
}
# Why a job ended, by Slurm's name for its state.
_ENDED = {
    "CANCELLED": "was cancelled",
    "NODE_FAIL": "ended because its node failed",
    "BOOT_FAIL": "ended because its node did not boot",
    "TIMEOUT": "reached its time limit; raise --slurm.time",
    "DEADLINE": "reached its deadline",
    "OUT_OF_MEMORY": "ran out of memory; give more, such as --slurm.options=mem=32G",
    "PREEMPTED": "was preempted",
    "REVOKED": "was revoked",
    "FAILED": "failed",
    "COMPLETED": "ended without a result",
}


def check(workdir: Path, **values: Any) -> None:
    """Refuses settings that no cluster accepts.

    Raises:
        InputError: Slurm or submitit is missing, the workdir is in a bucket, or a value is wrong.
    """
    if shutil.which("sbatch") is None:
        raise InputError(
            "--executor=slurm needs Slurm's commands (sbatch, squeue, scontrol), which this machine"
            " does not have; call it on a login node, or use --executor=local"
        )
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise InputError("--executor=slurm needs submitit; pip install submitit") from error
    if is_remote(workdir):
        raise InputError(
            f"--workdir={workdir} lies in a bucket, but Slurm jobs need files on disk; give a "
            "folder that all nodes see"
        )
    for name, least in (("slurm_gpus", 0), ("slurm_cpus", 0), ("slurm_max_parallel", 1)):
        if values[name] < least:
            flag = name.replace("_", ".", 1)
            raise InputError(f"--{flag}={values[name]} is below {least}; set --{flag}={least}")
    if values["retries"] < 0:
        raise InputError(f"--retries={values['retries']} is negative; set --retries=0")
    for text in values["slurm_options"]:
        if "=" not in text:
            raise InputError(f"--slurm.options={text}: write NAME=VALUE, such as account=vision")


def run(
    members: Sequence[Member],
    workdir: Path,
    starting: Callable[[str], None],
    retries: int,
    wait: bool,
    **settings: Any,
) -> Iterator[tuple[Member, Exception | None]]:
    """Submits the members that no job holds, and yields those that have ended.

    A member that has failed is yielded once; a later call submits it again.

    Raises:
        InputError: sbatch refuses the job.
        RunError: the cluster does not answer.
        Stopped: by Ctrl-C while it waits; the jobs go on.
    """
    folder = workdir.resolve() / "slurm"
    jobs = _submit_missing(members, folder, starting, retries, settings)
    left, pause, shown = list(members), 1.0, ""
    while left:
        said: dict[str, str] = {}
        now = states([jobs[member.name] for member in left])
        for member in list(left):
            job = jobs[member.name]
            alive, text = _state(member, job, now.get(job, ""), folder)
            if alive:
                said[member.name] = text
                continue
            left.remove(member)
            yield member, _ended(member, job, text, folder)
        if not wait or not left:
            break
        running = sum(text.startswith("runs") for text in said.values())
        text = f"{running} running, {len(left) - running} waiting"
        if text != shown:
            starting(text)
        shown = text
        try:
            time.sleep(pause)
        except KeyboardInterrupt as error:
            ids = " ".join(sorted({jobs[member.name].partition("_")[0] for member in left}))
            raise Stopped(
                f"the jobs go on; the same command shows them, scancel {ids} ends them", 130
            ) from error
        pause = min(pause * 1.5, 30)
    for member in left:
        yield member, Busy(said[member.name])


def states(jobs: Sequence[str]) -> dict[str, str]:
    """Slurm's name for the state of each job that it still knows.

    Raises:
        RunError: the cluster does not answer.
    """
    ids = ",".join(sorted({job.partition("_")[0] for job in jobs}))
    asked = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={ids}", "--format=%i|%T"]
    answer = subprocess.run(asked, capture_output=True, text=True)
    if answer.returncode and "Invalid job id" not in answer.stderr:
        raise RunError(
            f"squeue: {first_line(RunError(answer.stderr.strip()))}; the jobs are not affected; "
            "the same command shows them"
        )
    found = dict(line.strip().split("|") for line in answer.stdout.splitlines() if "|" in line)
    if any(job not in found for job in jobs):  # ended a while ago
        asked = [
            "sacct",
            "--noheader",
            "-X",
            "--parsable2",
            "--format=JobID,State",
            f"--jobs={ids}",
        ]
        lines = subprocess.run(asked, capture_output=True, text=True).stdout.splitlines()
        found = {job: word.split()[0] for job, word in (line.split("|") for line in lines)} | found
    return {job: found[job] for job in jobs if job in found}


def _submit_missing(
    members: Sequence[Member],
    folder: Path,
    starting: Callable[[str], None],
    retries: int,
    settings: dict[str, Any],
) -> dict[str, str]:
    """The job number of each member; submits the members that have none."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # if two shells call this, one submits
        files = {member.name: _read(folder / f"{member.name}.json") for member in members}
        jobs = {name: str(file["job"]) for name, file in files.items() if file}
        missing = [member for member in members if member.name not in jobs]
        if missing:
            submitted = _submit(missing, folder, retries, settings)
            for member, job in zip(missing, submitted, strict=True):
                write(folder / f"{member.name}.json", json.dumps({"job": job}))
                jobs[member.name] = job
            starting(f"submitted {len(missing)} members as job {submitted[0].partition('_')[0]}")
    return jobs


def _submit(
    members: Sequence[Member], folder: Path, retries: int, settings: dict[str, Any]
) -> list[str]:
    """Submits members as one job array; returns the job number of each."""
    import submitit

    options = dict(text.split("=", 1) for text in settings["slurm_options"])
    wanted = {
        "partition": settings["slurm_partition"],
        "gpus-per-node": settings["slurm_gpus"],
        "cpus-per-task": settings["slurm_cpus"],
    }
    own = {name: value for name, value in wanted.items() if value}
    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(
        job_name="gini_jax",
        array_parallelism=settings["slurm_max_parallel"],
        setup=[f"export PYTHONPATH={import_path()!r}"],
        srun_args=["--export=ALL"],
        additional_parameters={"requeue": True, "time": settings["slurm_time"], **own, **options},
    )
    folders = [str(folder.parent / member.name) for member in members]
    configs = [config_json(member.config) for member in members]
    try:
        jobs = executor.map_array(train_member, folders, configs, [retries] * len(members))
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
        lines = [x for x in str(error).splitlines() if x.startswith("sbatch: error: ")]
        reason = "; ".join(x.removeprefix("sbatch: error: ") for x in lines) or first_line(error)
        raise InputError(
            f"sbatch refuses the job ({reason}); correct --slurm.partition, --slurm.time or "
            "--slurm.options; sinfo shows what the cluster has"
        ) from error
    return [str(job.job_id) for job in jobs]


def train_member(folder: str, config: str, retries: int) -> None:
    """Trains a member as a task of a job; on Slurm's signals it is saved and queued again."""
    logging.set_verbosity(logging.WARNING)
    devices.prepare_cpu()
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    path = Path(folder)
    limit = False

    def near_the_limit(*_: Any) -> None:
        nonlocal limit
        limit = True
        signal.raise_signal(signal.SIGTERM)

    def stop(number: int, _: Any) -> NoReturn:  # outside the steps, where there is nothing to save
        raise Stopped("stopped by a signal", 128 + number)

    signal.signal(signal.SIGUSR2, near_the_limit)  # comes 90 s before the time limit
    signal.signal(signal.SIGTERM, stop)
    try:
        run_member(from_saved(json.loads(config)), path)
    except Stopped as stopped:
        told = limit or _still_wanted()
        if told and restarts < retries:
            _requeue()
        if told:
            reason = "reached its time limit" if limit else "was stopped by a signal"
            _note_error(path, f"{reason} after it was queued again {restarts} times (--retries)")
        _end_process(stopped.status)
    except Exception as error:
        if restarts < retries and not isinstance(error, InputError):
            _requeue()
        _note_error(path, f"{type(error).__name__}: {error}", busy=isinstance(error, Busy))
        _end_process(1)


def _end_process(status: int) -> NoReturn:
    """Ends this process at once, before submitit records a result or another signal arrives."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _job() -> str:
    """The number of the job that this process is a task of."""
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}" if task else os.environ["SLURM_JOB_ID"]


def _still_wanted() -> bool:
    """Whether a signal did not come from scancel: Slurm then lists the job as running.

    A job that is preempted with time to save itself would otherwise end for good.
    """
    with contextlib.suppress(RunError):
        return states([_job()]).get(_job()) == "RUNNING"
    return False


def _requeue() -> NoReturn:
    subprocess.run(["scontrol", "requeue", _job()], check=True)
    _end_process(128 + signal.SIGTERM)


def _note_error(member: Path, text: str, busy: bool = False) -> None:
    path = member.parent / "slurm" / f"{member.name}.error.json"
    write(path, json.dumps({"job": _job(), "error": text, "busy": busy}))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _state(member: Member, job: str, word: str, folder: Path) -> tuple[bool, str]:
    """Whether a job has yet to end, and its progress or why it ended; "" if it is finished."""
    path = folder.parent / member.name
    if holds_result(path, member.config):
        return False, ""
    if word and word not in _ENDED:
        if word != "RUNNING":
            return True, f"is {word.lower()}, job {job}"
        return True, f"runs as job {job}: {_progress(path, member.config.num_epochs)}"
    return False, _ENDED.get(word, "is not known to Slurm any more")


def _progress(member: Path, epochs: int) -> str:
    """How far a run has come.

    Examples:
        >>> _progress(Path("missing"), 30)
        'epoch 1 of 30'
    """
    metrics = member / "metrics.jsonl"
    lines = epochs_of(member) if metrics.exists() else []
    if not lines:
        return f"epoch 1 of {epochs}"
    last = lines[-1]
    done = min(last["epoch"] + 1, epochs)
    return f"epoch {done} of {epochs}, {last['images_per_second']:,.0f} images/s"


def _ended(member: Member, job: str, reason: str, folder: Path) -> Exception | None:
    """The error of a member that ended, if any; its job is forgotten, so that it can run again."""
    own, error = folder / f"{member.name}.json", folder / f"{member.name}.error.json"
    said = _read(error)
    for path in (own, error):
        path.unlink(missing_ok=True)
    if not reason:
        return None
    if said.get("job") == job:
        if said["busy"]:
            return Busy("is being trained by another process; skipped")
        reason = said["error"]
    log = folder.parent / member.name / "log.txt"
    if not log.exists():
        log = folder / f"{job}_0_log.err"
    lines = log.read_text().strip().splitlines()[-5:] if log.exists() else []
    end = f"; the end of {log}:\n" + "\n".join(f"    {line}" for line in lines) if lines else ""
    return RunError(f"job {job} {reason}{end}")
