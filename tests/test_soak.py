"""A short form of benchmarks/soak.py."""

from benchmarks import soak


def test_a_run_whose_processes_are_killed_ends_like_an_undisturbed_one(tmp_path):
    found = soak.soak(tmp_path, number=2, epochs=3, seed=0, most=1)
    assert found["kills"] >= 1
    assert len(found["memory"]) == len(found["open_files"]) == 2 or found["samples"] == 0
