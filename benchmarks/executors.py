"""Minutes of a sweep with its members one after the other, and side by side.

    python benchmarks/executors.py --out=results/executors.json

Four members of the digits, 20 epochs each; start-up and compilation are part of a member's time.
Both ways take turns, each in a folder of its own, so that neither finds the other's programs.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Sweeps of each way.")
_PARALLEL = flags.DEFINE_integer("parallel", 2, "Members at a time.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")
ROOT = Path(__file__).resolve().parent.parent
SWEEP = [
    "--mode=sweep",
    "--config=digits:ce",
    "--seeds=0-3",
    "--config.num_epochs=20",
    "--config.loggers=jsonl",
    "--config.evals=accuracy",
    "--config.report=False",
]


def seconds_of(*arguments: str) -> float:
    """Wall time of a sweep."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "launch.py", *SWEEP, f"--workdir={folder}/sweep", *arguments]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - start


def main(argv: list[str]) -> None:
    """Prints and writes the figures."""
    del argv
    ways = {"inline": [], "local": ["--executor=local", f"--parallel={_PARALLEL.value}"]}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(_ROUNDS.value):
        for way, arguments in ways.items():
            seconds[way].append(round(seconds_of(*arguments), 1))
            print(way, seconds[way][-1], flush=True)
    pairs = zip(seconds["inline"], seconds["local"], strict=True)
    ratios = [one / other for one, other in pairs]
    report = {
        "cores": os.cpu_count(),
        "members": 4,
        "parallel": _PARALLEL.value,
        "seconds": seconds,
        "inline_over_local": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
    }
    print(report)
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
