"""Seconds from the start of the program to its first training step, and where they go.

    python benchmarks/startup.py --out=results/startup.json

The default config, digits. A first start has no compiled programs in its cache; a second start has
them. Both take turns with a program that only imports jax, flax and optax. So do help and errors
with one that only imports jax; they are measured after a start that kept the table of help.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.machine import write_by_kind

_ROUNDS = flags.DEFINE_integer("rounds", 7, "Starts of each kind.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")
ROOT = Path(__file__).resolve().parent.parent

IMPORTS = """
import time, psutil
import jax, flax, optax
print("seconds", {"imports": time.time() - psutil.Process().create_time()})
"""
FIRST_STEP = """
import os, sys, time
import psutil
since = psutil.Process().create_time()
seconds = {}
sys.argv[0] = "launch.py"
import gini_jax.cli
import gini_jax.modes.train as train
seconds["imports"] = time.time() - since
from gini_jax.training import stepper
load, call = train.load_dataset, stepper.Stepper.__call__

def timed_load(*args, **kwargs):
    before = time.time()
    dataset = load(*args, **kwargs)
    seconds["data"] = time.time() - before
    return dataset

def timed_call(self, state, step, count):
    before = time.time()
    state, metrics = call(self, state, step, count)
    float(metrics["loss"][-1])
    seconds["step, with tracing and compilation"] = time.time() - before
    seconds["all"] = time.time() - since
    print("seconds", seconds, flush=True)
    os._exit(0)

train.load_dataset, stepper.Stepper.__call__ = timed_load, timed_call
gini_jax.cli.main(sys.argv)
"""

ANSWERS = {
    "--help": ["--help"],
    "an unknown setting": ["--config.loss.foo=1"],
    "an unknown objective": ["--config=digits:gin"],
    "a folder that is not there": ["--mode=report", "--workdir=runs/none"],
}


def seconds_to_end(*command: str) -> float:
    """Wall time of a process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True)
    return time.perf_counter() - start


def seconds_of(program: str, cache: str, *arguments: str) -> dict[str, float]:
    """What a program prints about its own time."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    out = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    line = next(line for line in out.splitlines() if line.startswith("seconds "))
    return json.loads(line.removeprefix("seconds ").replace("'", '"'))


def main(argv: list[str]) -> None:
    """Prints a table, and writes the figures."""
    del argv
    found: dict[str, list[dict[str, float]]] = {"imports alone": [], "first": [], "second": []}
    answers: dict[str, list[float]] = {name: [] for name in ANSWERS}
    seconds_to_end("launch.py", "--help")
    for _ in range(_ROUNDS.value):
        with tempfile.TemporaryDirectory() as folder:
            found["imports alone"].append(seconds_of(IMPORTS, folder))
            for start in ("first", "second"):
                workdir = f"--workdir={folder}/{start}"
                found[start].append(seconds_of(FIRST_STEP, f"{folder}/jax", workdir))
        alone = seconds_to_end("-c", "import jax")
        for name, arguments in ANSWERS.items():
            answers[name].append(seconds_to_end("launch.py", *arguments) / alone)
    report: dict[str, Any] = {"cores": os.cpu_count(), "rounds": _ROUNDS.value}
    for start, rounds in found.items():
        report[start] = {
            part: [round(v, 3) for v in statistics.quantiles([r[part] for r in rounds], n=4)]
            for part in rounds[0]
        }
        shown = ", ".join(f"{part} {values[1]:.2f} s" for part, values in report[start].items())
        print(f"{start}: {shown}")
    ratios = [
        second["all"] / alone["imports"]
        for second, alone in zip(found["second"], found["imports alone"], strict=True)
    ]
    report["second over imports"] = [round(v, 2) for v in statistics.quantiles(ratios, n=4)]
    print(f"second start over the imports alone: {report['second over imports'][1]:.2f}")
    report["answers over import jax"] = {
        name: [round(v, 2) for v in statistics.quantiles(values, n=4)]
        for name, values in answers.items()
    }
    print(f"over import jax: {report['answers over import jax']}")
    if _OUT.value:
        write_by_kind(Path(_OUT.value), report)


if __name__ == "__main__":
    app.run(main)
