"""A run in four processes that are killed again and again ends like one that nothing happens to.

    python benchmarks/soak.py --out=results/soak.json

Four processes on loopback train a small network on some of the digits, fed from the host, for 200
epochs. After up to 20 seconds of training a random one is killed (SIGKILL); the others are then
ended too, as Slurm and Kubernetes do, and all start again, until the run is finished. The result,
the log and the files have to be those of an undisturbed run, and memory and open files of its
processes have to stay as they are.
"""

import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from absl import app, flags

ROOT = Path(__file__).resolve().parent.parent
TIMES = {"train_seconds", "images_per_second"}
RUN = [
    "--config=digits",
    "--config.model.width=8",
    "--config.model.blocks=(1, 1)",
    "--config.loss.layers=('stage2',)",
    "--config.loss.start_epoch=2",
    "--config.dataset.feed=stream",
    "--config.dataset.train_size=128",
    "--config.batch_size=64",
    "--config.evals=()",
    "--config.report=False",
    "--config.loggers=jsonl",
]


class Processes:
    """The processes of a run."""

    def __init__(self, workdir: Path, number: int, arguments: list[str]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with open(workdir.with_suffix(".log"), "a") as log:
            self._each = [
                subprocess.Popen(
                    [
                        sys.executable,
                        "launch.py",
                        f"--workdir={workdir}",
                        f"--coordinator_address=127.0.0.1:{port}",
                        f"--num_processes={number}",
                        f"--process_id={i}",
                        *arguments,
                    ],
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"JAX_PLATFORMS": "cpu"},
                )
                for i in range(number)
            ]

    def running(self) -> bool:
        """Whether all run."""
        return all(process.poll() is None for process in self._each)

    def finished(self) -> bool:
        """Whether all have ended without an error; waits for the last ones."""
        if any(process.poll() not in (None, 0) for process in self._each):
            return False
        return all(process.wait() == 0 for process in self._each)

    def kill(self, index: int) -> None:
        """Kills one of them, then the others."""
        self._each[index].kill()
        for process in self._each:
            process.kill()
            process.wait()

    def used(self) -> list[dict[str, int]]:
        """Memory in bytes and open files of each."""
        found = []
        for process in self._each:
            try:
                about = psutil.Process(process.pid)
                found.append({"memory": about.memory_info().rss, "files": about.num_fds()})
            except psutil.Error:  # it has just ended
                return []
        return found


def lines_of(workdir: Path) -> list[dict]:
    """metrics.jsonl, times aside."""
    path = workdir / "metrics.jsonl"
    texts = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(x).items() if k not in TIMES} for x in texts]


def epochs_of(arguments: list[str]) -> int:
    """How long the run is."""
    return int(arguments[-1].rpartition("=")[2])


def undisturbed(workdir: Path, number: int, arguments: list[str]) -> list[list[dict[str, int]]]:
    """Runs to the end; what the processes used, every half second of training."""
    processes, samples = Processes(workdir, number, arguments), []
    while processes.running():
        if 0 < len(lines_of(workdir)) < epochs_of(arguments):  # compiled, and not yet measured
            samples.append(processes.used())
        time.sleep(0.5)
    assert processes.finished(), workdir.with_suffix(".log").read_text()[-3000:]
    return [sample for sample in samples if sample]


def soaked(
    workdir: Path,
    number: int,
    arguments: list[str],
    rng: random.Random,
    seconds: float,
    times: float,
) -> int:
    """Runs to the end, a process killed after up to so many seconds of training; how often.

    Not more than `times` times.
    """
    kills = 0
    while True:
        before = len(lines_of(workdir))
        processes = Processes(workdir, number, arguments)
        while processes.running() and (kills >= times or len(lines_of(workdir)) <= before):
            time.sleep(0.05)
        deadline = time.monotonic() + (rng.uniform(0, seconds) if kills else 0)
        while processes.running() and time.monotonic() < deadline:
            time.sleep(0.05)
        if not processes.running() and processes.finished():
            return kills
        assert processes.running(), workdir.with_suffix(".log").read_text()[-3000:]
        processes.kill(rng.randrange(number))
        kills += 1
        print(f"killed {kills} times, {len(lines_of(workdir))} epochs done", flush=True)


def growth(samples: list[list[dict[str, int]]], what: str) -> list[dict[str, float]]:
    """Per process: medians over the second and the last quarter of a run, and their ratio."""
    found = []
    quarter = max(len(samples) // 4, 1)
    for each in zip(*samples, strict=True):
        values = [sample[what] for sample in each]
        early = statistics.median(values[quarter : 2 * quarter] or values)
        late = statistics.median(values[-quarter:])
        found.append({"early": early, "late": late, "ratio": round(late / early, 4)})
    return found


def soak(
    folder: Path,
    number: int,
    epochs: int,
    seed: int,
    most: float = 20,
    times: float = float("inf"),
) -> dict:
    """Runs both ways, and compares them.

    Raises:
        AssertionError: a result, a line of the log or a file differs.
    """
    arguments = [*RUN, f"--config.num_epochs={epochs}"]
    calm, hard = folder / "calm", folder / "hard"
    start = time.monotonic()
    samples = undisturbed(calm, number, arguments)
    seconds = round(time.monotonic() - start)
    kills = soaked(hard, number, arguments, random.Random(seed), most, times)
    results = [json.loads((workdir / "result.json").read_text()) for workdir in (calm, hard)]
    for result in results:
        for name in TIMES:
            del result[name]
    assert results[0] == results[1], results
    assert lines_of(calm) == lines_of(hard)
    assert [line["epoch"] for line in lines_of(hard)] == list(range(1, epochs + 1))
    names = [{path.relative_to(x).parts[:2] for path in x.rglob("*")} for x in (calm, hard)]
    assert names[0] == names[1], names[0] ^ names[1]
    return {
        "processes": number,
        "epochs": epochs,
        "cores": os.cpu_count(),
        "kills": kills,
        "most_seconds_between_kills": most,
        "seconds": {"undisturbed": seconds, "both": round(time.monotonic() - start)},
        "equal": "result.json, metrics.jsonl (times aside) and the names of all files",
        "memory": growth(samples, "memory"),
        "open_files": growth(samples, "files"),
        "samples": len(samples),
    }


def main(argv: list[str]) -> None:
    """Prints and writes the figures."""
    del argv
    given = flags.FLAGS
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), given.processes, given.epochs, given.seed)
    print(json.dumps(report, indent=2))
    if given.out:
        Path(given.out).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    flags.DEFINE_integer("processes", 4, "Processes of the run.")
    flags.DEFINE_integer("epochs", 200, "Epochs of the run.")
    flags.DEFINE_integer("seed", 0, "Of the moments at which processes are killed.")
    flags.DEFINE_string("out", "", "JSON file for the figures.")
    app.run(main)
