"""The tests that are left out here were run, and passed."""

import json

from tests.conftest import ROOT, SLOW


def test_each_slow_test_has_passed(request):
    results = json.loads((ROOT / "results" / "slow_tests.json").read_text())["tests"]
    for name in request.config.stash[SLOW]:
        outcome = results.get(name, {}).get("outcome", "never run")
        assert outcome == "passed", f"{name}: {outcome}; run python benchmarks/slow_tests.py"
