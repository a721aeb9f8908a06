"""A short form of benchmarks/soak.py."""

import pytest

from benchmarks import soak
from tests.conftest import QUICK


@pytest.mark.slow
def test_a_run_whose_processes_are_killed_ends_like_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", QUICK)  # a device for each process
    found = soak.soak(tmp_path, number=2, epochs=2, seed=0, times=1)
    assert found["kills"] == 1


def test_growth_compares_the_last_quarter_of_a_run_with_the_second():
    samples = [[{"files": 7}, {"files": 100 + i}] for i in range(8)]
    first, second = soak.growth(samples, "files")
    assert first == {"early": 7, "late": 7, "ratio": 1}
    assert second == {"early": 102.5, "late": 106.5, "ratio": round(106.5 / 102.5, 4)}
