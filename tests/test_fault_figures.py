"""The figures of fuzzing and soaking in results/ are of full runs, and the docs say them."""

import json

from docs.fault_tables import fuzz, soak
from tests.conftest import ROOT


def figures(name):
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def test_the_fuzzing_in_results_was_a_full_run():
    found = figures("fuzz")
    tried = {kind: found[kind]["tried"] for kind in ("loss_inputs", "command_lines", "files")}
    assert tried == {"loss_inputs": 10_000, "command_lines": 2_000, "files": 500}
    for kind in tried:
        assert sum(found[kind]["outcomes"].values()) == tried[kind]
    names = {name.rpartition(": ")[2] for kind in tried for name in found[kind]["outcomes"]}
    assert names == {"finite", "error", "starts", "read all the same"}
    assert fuzz() in (ROOT / "SECURITY.md").read_text()


def test_the_soak_in_results_was_a_full_run():
    found = figures("soak")
    assert found["processes"] == 4 and found["epochs"] == 200 and found["kills"] >= 10
    assert len(found["memory"]) == len(found["open_files"]) == 4
    assert soak() in (ROOT / "docs" / "clusters.md").read_text()
