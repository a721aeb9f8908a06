"""Seconds of a sweep over seeds beside those of one run, and of reports that have nothing to draw.

    python benchmarks/waiting.py --out=results/waiting.json

The default config, digits. A round is one run, a sweep of `--members` seeds in one process, the
same sweep again, and `--mode=report` of the finished sweep: where the page stands, and where it is
missing. The run and the sweep each begin in an empty folder, without compiled programs.
`import jax, flax, optax` is timed beside them.
"""

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

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds.")
_MEMBERS = flags.DEFINE_integer("members", 12, "Seeds of the sweep.")
_EPOCHS = flags.DEFINE_integer("epochs", 0, "Epochs of a run; 0: as the config says.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")
ROOT = Path(__file__).resolve().parent.parent


def seconds(*arguments: str) -> float:
    """Wall time of a process that must succeed."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - start


def one_round(folder: Path) -> dict[str, float]:
    """Seconds by what is waited for."""
    few = [f"--config.num_epochs={_EPOCHS.value}"] if _EPOCHS.value else []
    sweep = ["launch.py", "--mode=sweep", f"--seeds=0-{_MEMBERS.value - 1}", *few]
    workdir = folder / "many" / "sweep"  # programs are kept in the folder above
    sweep += [f"--workdir={workdir}"]
    report = ["launch.py", "--mode=report", f"--workdir={workdir}"]
    found = {"imports": seconds("-c", "import jax, flax, optax")}
    found["one run"] = seconds("launch.py", *few, f"--workdir={folder / 'one' / 'run'}")
    found["sweep"] = seconds(*sweep)
    found["sweep, finished"] = seconds(*sweep)
    found["report, unchanged"] = seconds(*report)
    (workdir / "report.html").unlink()
    found["report, drawn"] = seconds(*report)
    return found


def main(argv: list[str]) -> None:
    """Prints the ratios, and writes the figures."""
    del argv
    rounds = []
    for i in range(_ROUNDS.value):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(one_round(Path(folder)))
        print(i, {k: round(v, 1) for k, v in rounds[-1].items()}, flush=True)
    report: dict[str, Any] = {
        "cores": os.cpu_count(),
        "rounds": len(rounds),
        "members": _MEMBERS.value,
        "seconds": {k: [round(v, 3) for v in _range([r[k] for r in rounds])] for k in rounds[0]},
        "sweep over one run": _range([r["sweep"] / r["one run"] for r in rounds]),
    }
    for name in ("sweep, finished", "report, unchanged"):
        report[f"{name}, over imports"] = _range([r[name] / r["imports"] for r in rounds])
    print(report)
    if _OUT.value:
        write_by_kind(Path(_OUT.value), report)


def _range(values: list[float]) -> list[float]:
    """The least, the median, the largest."""
    return [round(v, 3) for v in (min(values), statistics.median(values), max(values))]


if __name__ == "__main__":
    app.run(main)
