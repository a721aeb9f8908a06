"""Runs the tests that take too long for every change, and keeps what came of them.

    python benchmarks/slow_tests.py                        all of them
    python benchmarks/slow_tests.py tests/slurm            those of a file or folder

They are marked `slow`. `pytest` alone leaves them out, but tests/test_slow.py checks that each of
them passed when this was last run. Run it before a release, and after changes of what they test:
runs on clusters and in buckets, runs that are killed, searches, benches, pretrained networks,
notebooks, further shardings and objectives. It takes half an hour on two cores.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "slow_tests.json"


class Outcomes:
    """A plugin of pytest that collects, by test, what came of it and how long it took."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Adds setup, call or teardown of a test."""
        test = self.tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        test["seconds"] = round(test["seconds"] + report.duration, 1)
        if report.outcome != "passed":
            test["outcome"] = report.outcome


def main(places: list[str]) -> int:
    """Runs the slow tests of some places; returns pytest's exit status."""
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # as `python -m pytest` does
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()
    outcomes = Outcomes()
    options = ["-m", "slow", "-n", "2", "--dist", "worksteal"]
    status = int(pytest.main([*options, *places], plugins=[outcomes]))
    known = json.loads(RESULTS.read_text())["tests"] if RESULTS.exists() else {}
    if not places:  # without those that are gone
        known = {name: test for name, test in known.items() if name in outcomes.tests}
    for name, test in outcomes.tests.items():
        if test["outcome"] != "skipped" or name not in known:
            known[name] = test | {"commit": commit}
    results = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "tests": dict(sorted(known.items())),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{RESULTS.relative_to(ROOT)}: {len(outcomes.tests)} tests of commit {commit}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
