"""Runs the covering array of all pairs of features, and keeps how many pairs it covered.

    python benchmarks/pairs.py

The rows are those of tests/helpers/pairs.py, which the slow tests run. This runs and counts two at
a time, for about a quarter of an hour on two cores. It names rows that fail; their pairs do not
count as covered. `--log=FILE` counts a finished run of the tests that had `PAIRS_LOG=FILE` in its
environment.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.helpers import pairs  # noqa: E402


def main() -> int:
    """Runs all rows, or counts those of a log; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, help="of a run of the tests that has ended")
    log = parser.parse_args().log
    if log is None:
        log = Path(tempfile.mkdtemp()) / "rows"
        tests = ["tests/test_pairs.py", "-n", "2", "--dist", "worksteal", "-m", "slow or not slow"]
        environment = os.environ | {"PAIRS_LOG": str(log)}
        subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=ROOT, env=environment)
    rows, ended = pairs.rows(), set(map(int, log.read_text().split()))
    passed = [row for i, row in enumerate(rows) if i in ended]
    sizes = [len(values) for values in pairs.COLUMNS.values()]
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "columns": {name: len(values) for name, values in pairs.COLUMNS.items()},
        "combinations": math.prod(sizes),
        "pairs": (sum(sizes) ** 2 - sum(x**2 for x in sizes)) // 2,
        "pairs_refused": len(pairs.refused_pairs()),
        "pairs_covered": len({pair for row in passed for pair in pairs.pairs_of(row)}),
        "rows": len(rows),
        "rows_passed": len(passed),
        "rows_not_passed": [str(row) for i, row in enumerate(rows) if i not in ended],
    }
    (ROOT / "results" / "pairs.json").write_text(json.dumps(found, indent=2) + "\n")
    print(f"{found['pairs_covered']} of {found['pairs']} pairs, {found['pairs_refused']} refused")
    return len(passed) < len(rows)


if __name__ == "__main__":
    sys.exit(main())
