"""Runs the covering array of all pairs of features, and keeps how many pairs it covered.

    python benchmarks/pairs.py

The rows are those of tests/pairs.py, in one process, about ten seconds each on one core. A row that
fails is named, and its pairs do not count as covered.
"""

import json
import math
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)

import tests.conftest  # noqa: E402, F401, which sets jax up as for tests
from tests import pairs  # noqa: E402


def main() -> int:
    """Runs all rows; returns the exit status."""
    start, failed, covered = time.monotonic(), [], set()
    with tempfile.TemporaryDirectory() as name:
        places = Path(name) / "places"
        pairs.write_places(places)
        rows = pairs.rows()
        for i, row in enumerate(rows):
            try:
                pairs.run(row, places, Path(name) / str(i) / "run")
                covered |= {str(pair) for pair in pairs.pairs_of(row)}
            except Exception as error:
                failed.append(f"{row}: {type(error).__name__}: {str(error)[:300]}")
            left = (time.monotonic() - start) / (i + 1) * (len(rows) - i - 1)
            print(f"{i + 1} of {len(rows)} rows, {len(failed)} failed, {left / 60:.0f} min left")
    sizes = [len(values) for values in pairs.COLUMNS.values()]
    every = (sum(sizes) ** 2 - sum(x**2 for x in sizes)) // 2
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "columns": {name: len(values) for name, values in pairs.COLUMNS.items()},
        "combinations": math.prod(sizes),
        "pairs": every,
        "pairs_refused": len(pairs.refused_pairs()),
        "pairs_covered": len(covered),
        "rows": len(rows),
        "rows_failed": failed,
        "minutes": round((time.monotonic() - start) / 60, 1),
    }
    (ROOT / "results" / "pairs.json").write_text(json.dumps(found, indent=2) + "\n")
    return len(failed) > 0


if __name__ == "__main__":
    sys.exit(main())
