"""The paper's recipe for CIFAR-100, as a queue that a GPU works off for as long as it is there.

    python benchmarks/gpu.py --part=queue --data_dir=DIR --minutes=60 --out=results/gpu_queue.json

Jobs are runs of the published recipe, in the order of what they are worth: first the paper's claim
(cross-entropy and the two terms, seed by seed), then doses of selectivity, then other losses; first
ResNet-18, then ResNet-50. A job is a folder of `--workdir`: where the minutes end, its run saves a
checkpoint, and the same command goes on from there. `--out` has a row for each run that has ended.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

ROOT = Path(__file__).resolve().parent.parent
J = TypeVar("J")  # a job
SEEDS = 5
CLAIM = ("ce", "gini_kl")
DOSES = (0.3, -0.3, 0.1, -0.1)
RIVALS = ("smoothing", "center", "supcon", "vcreg", "opl", "monosemantic")
HELD = {"loss.hold_gradient_ratios": True}
SMALL = {
    "model.width": 8,
    "dataset.train_size": 200,
    "dataset.val_size": 100,
    "dataset.test_size": 100,
    "batch_size": 40,
    "num_epochs": 2,
    "schedule.boundaries": "()",
    "loss.start_epoch": 1,
    "evals": "()",
}


class Job(NamedTuple):
    """A run: a network, an objective with its settings, and a seed."""

    network: str
    arm: str
    objective: str
    settings: dict[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.network}-{self.arm}-seed{self.seed}"


def jobs() -> Iterator[Job]:
    """All jobs, those that are worth most first."""
    for network in ("resnet18", "resnet50"):
        for seed in range(SEEDS):
            for arm in CLAIM:
                yield Job(network, arm, arm, {}, seed)
        for seed in range(SEEDS):
            for dose in DOSES:
                objective = "gini" if dose > 0 else "anti_gini"
                own = HELD | {"loss.terms.gini": dose, "loss.start_epoch": 1}
                yield Job(network, f"gini_{dose}", objective, own, seed)
        for seed in range(SEEDS):
            for rival in RIVALS:
                smooths = rival == "smoothing"
                own = {"loss.label_smoothing": 0.1}
                if not smooths:
                    own = HELD | {f"loss.terms.{rival}": 0.1, "loss.start_epoch": 1}
                yield Job(network, rival, "ce" if smooths else rival, own, seed)


def command_of(job: Job, workdir: Path, data_dir: str, small: bool) -> list[str]:
    """The command that starts, or resumes, a job's run."""
    given: dict[str, Any] = {"dataset.data_dir": data_dir, "seed": job.seed}
    if small:
        given |= SMALL
    else:
        given |= {"model.dtype": "bfloat16", "eval_every_epochs": 5, "steps_per_call": 10}
    given |= {"report": False, "loggers": "('jsonl',)", **job.settings}
    command = [sys.executable, "launch.py", f"--config=cifar100_{job.network}:{job.objective}"]
    command += [f"--workdir={(workdir / job.name).resolve()}"]
    return command + [f"--config.{key}={value}" for key, value in given.items()]


def work_off(
    out: Path, workdir: Path, data_dir: str, minutes: float, parallel: int, small: bool
) -> int:
    """Runs jobs, `parallel` at a time, until the minutes are over; the number of rows in `out`."""
    until = time.monotonic() + 60 * minutes
    workdir = workdir / "small" if small else workdir
    report = json.loads(out.read_text()) if out.exists() else {"small": small, "rows": []}
    if report.get("small") is not small:
        raise SystemExit(
            f"--out={out} holds other rows than those of this queue; give another file"
        )
    rows = report["rows"]
    done = {(row["network"], row["arm"], row["seed"]) for row in rows}
    waiting = [job for job in jobs() if (job.network, job.arm, job.seed) not in done]
    print(f"{len(rows)} jobs are done, {len(waiting)} are left", flush=True)
    commands = [(job, command_of(job, workdir, data_dir, small)) for job in waiting]
    for job, result in ended(commands, lambda job: workdir / job.name, parallel, until):
        rows.append(job._asdict() | {"result": result})
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"small": small, "rows": rows}, indent=1) + "\n")
        accuracy, left = result["test_accuracy"], (until - time.monotonic()) / 60
        print(f"{job.name}: {accuracy:.4f}; {left:.0f} min left", flush=True)
    return len(rows)


def ended(
    commands: Iterable[tuple[J, list[str]]],
    folder_of: Callable[[J], Path],
    parallel: int,
    until: float,
) -> Iterator[tuple[J, dict[str, Any]]]:
    """Each job that has ended with its result, as `parallel` processes at a time reach it.

    When the time is over, the processes save a checkpoint and end; the same command resumes them.
    After three failures no job starts any more.
    """
    waiting, running, failed = list(commands), [], 0
    while time.monotonic() < until and (waiting or running) and failed < 3:
        while waiting and len(running) < parallel:
            job, command = waiting.pop(0)
            running.append((job, _started(command, folder_of(job), parallel)))
        time.sleep(0.2)
        for job, process in [entry for entry in running if entry[1].poll() is not None]:
            running.remove((job, process))
            path = folder_of(job) / "result.json"
            if process.returncode or not path.exists():
                failed += 1
                print(f"{folder_of(job)} failed; see {folder_of(job)}.log", flush=True)
                continue
            yield job, json.loads(path.read_text())
    for _, process in running:  # they save a checkpoint, and end
        process.send_signal(signal.SIGTERM)
    for _, process in running:
        process.wait()


def _started(command: list[str], folder: Path, parallel: int) -> "subprocess.Popen[bytes]":
    """Starts, or resumes, a run in a process of its own."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.85 / parallel:.2f}"}
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        log.write((shlex.join(command) + "\n").encode())
        log.flush()
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | share, stdout=log, stderr=log)
