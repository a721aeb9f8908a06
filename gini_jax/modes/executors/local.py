"""Trains several members of a sweep at a time, each in a process with its own device or cores."""

import contextlib
import glob
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gini_jax.errors import Busy, InputError, RunError, Stopped
from gini_jax.modes.executors.member import BUSY, ENDED, import_path
from gini_jax.modes.members import Member
from gini_jax.training.workdir import config_json

FLAGS: dict[str, Any] = {
    "parallel": (
        0,
        int,
        "local: members at a time; by default one for each accelerator, or for every two cores.",
    ),
}


def check(workdir: Path, parallel: int) -> None:
    """Refuses a negative number, or more processes than TPU chips, which cannot be shared.

    Raises:
        InputError: `parallel` is negative or too large.
    """
    del workdir
    if parallel < 0:
        raise InputError(f"--parallel={parallel} is negative; set --parallel=2, or 0 to choose")
    kind, found = accelerators()
    environments(kind, found, parallel or default_parallel(found))


def run(
    members: Sequence[Member], workdir: Path, starting: Callable[[str], None], parallel: int
) -> Iterator[tuple[Member, Exception | None]]:
    """Trains `parallel` members at a time.

    If a process dies, the others go on. A signal is passed on: every member saves its state.

    Raises:
        Stopped: after a signal, with all members saved.
    """
    kind, found = accelerators()
    slots = environments(kind, found, parallel or default_parallel(found))
    cores = shares_of_cores(len(slots)) if kind == "cpu" else [[]] * len(slots)
    waiting, signals = list(members), []
    running: dict[int, tuple[Member, subprocess.Popen[bytes]]] = {}

    def note(number: int, _: Any) -> None:
        signals.append(number)
        for _, process in running.values():
            process.terminate()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while running or (waiting and not signals):
            for slot in [i for i in range(len(slots)) if i not in running]:
                if waiting and not signals:
                    member = waiting.pop(0)
                    starting(f"now {member.name}")
                    running[slot] = member, _start(member, workdir, slots[slot], cores[slot])
                    if signals:  # one that came while the process started has not reached it
                        running[slot][1].terminate()
            for slot, (member, process) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    if not signals or process.returncode == 0:
                        yield member, _error_of(process.returncode, _log(member, workdir))
            time.sleep(0.2)
    finally:
        for _, process in running.values():
            process.terminate()
        for number, handler in before.items():
            signal.signal(number, handler)
    if signals:
        raise Stopped("all members saved; the same command resumes them", 128 + signals[0])


def accelerators() -> tuple[str, list[str]]:
    """The kind of this machine's devices, `gpu`, `tpu` or `cpu`, and their numbers; without jax.

    It respects `CUDA_VISIBLE_DEVICES`, `TPU_VISIBLE_CHIPS` and `JAX_PLATFORMS=cpu`.
    """
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return "cpu", []
    for kind, variable, files in (
        ("gpu", "CUDA_VISIBLE_DEVICES", "/dev/nvidia[0-9]*"),
        ("tpu", "TPU_VISIBLE_CHIPS", "/dev/accel[0-9]*"),
    ):
        given = os.environ.get(variable)
        there = [re.sub(r"\D", "", path) for path in glob.glob(files)]
        if found := sorted(there, key=int) if given is None else [x for x in given.split(",") if x]:
            return kind, found
    return "cpu", []


def default_parallel(devices: Sequence[str]) -> int:
    """Members at a time: one for each accelerator, or for every two cores."""
    return len(devices) or max(len(_cores()) // 2, 1)


def environments(kind: str, devices: Sequence[str], parallel: int) -> list[dict[str, str]]:
    """The environment variables of each of `parallel` processes.

    Each gets one device; several on one GPU share its memory evenly.

    Raises:
        InputError: there are fewer TPU chips than processes.

    Examples:
        >>> environments("gpu", ["0", "3"], 2)
        [{'CUDA_VISIBLE_DEVICES': '0'}, {'CUDA_VISIBLE_DEVICES': '3'}]
        >>> environments("gpu", ["0"], 2)[1]
        {'CUDA_VISIBLE_DEVICES': '0', 'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.45'}
    """
    if kind == "cpu":
        return [{} for _ in range(parallel)]
    if kind == "tpu":
        if parallel > len(devices):
            raise InputError(
                f"--parallel={parallel} exceeds the {len(devices)} chips, which cannot be shared; "
                f"set --parallel={len(devices)}"
            )
        one = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
        return [{"TPU_VISIBLE_CHIPS": chip, **one} for chip in devices[:parallel]]
    each = -(-parallel // len(devices))
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / each:.2f}"} if each > 1 else {}
    return [{"CUDA_VISIBLE_DEVICES": devices[i % len(devices)], **memory} for i in range(parallel)]


def shares_of_cores(parallel: int) -> list[list[int]]:
    """The cores that this process may use, divided evenly; shared where there are too few."""
    cores = _cores()
    return [cores[i::parallel] or cores for i in range(parallel)]


def _cores() -> list[int]:
    allowed = getattr(os, "sched_getaffinity", None)  # of Linux
    return sorted(allowed(0)) if allowed else list(range(os.cpu_count() or 1))


def _log(member: Member, workdir: Path) -> Path:
    """Where a member's process writes what is not in its log.txt, such as messages of C++ code."""
    return workdir / f"{member.name}.stderr"


def _command(folder: Path) -> list[str]:
    program = "import sys; from gini_jax.modes.executors.member import run_process; "
    return [sys.executable, "-c", program + "sys.exit(run_process(sys.argv[1]))", str(folder)]


def _start(
    member: Member, workdir: Path, environment: dict[str, str], cores: Sequence[int]
) -> subprocess.Popen[bytes]:
    """A process that reads the member's config from its input; cores are set before jax starts."""
    with (
        tempfile.TemporaryFile() as config,
        open(_log(member, workdir), "wb") as log,
    ):
        config.write(config_json(member.config).encode())
        config.seek(0)
        process = subprocess.Popen(
            _command(workdir / member.name),
            env=os.environ | environment | {"PYTHONPATH": import_path()},
            stdin=config,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches only this process, which passes it on
        )
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):  # it may have ended
            os.sched_setaffinity(process.pid, cores)
    return process


def _error_of(status: int, log: Path) -> Exception | None:
    """What ended a process, from its log, which is deleted if its member is finished."""
    lines = log.read_text(errors="replace").strip().splitlines()
    if status == 0:
        log.unlink()
        return None
    said = [line.removeprefix(ENDED) for line in lines if line.startswith(ENDED)]
    if status == BUSY:
        return Busy(said[-1])
    if said:
        return RunError(said[-1].removeprefix("RunError: "))
    reason = f"ended with status {status}"
    if status < 0:
        reason = f"was ended by {signal.Signals(-status).name}"
    tail = "".join(f"\n    {line}" for line in lines[-5:])
    return RunError(f"its process {reason}" + (f"; the end of {log}:{tail}" if tail else ""))
