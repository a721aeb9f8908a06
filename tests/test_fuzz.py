"""A short form of benchmarks/fuzz.py."""

import numpy as np

from benchmarks import fuzz_command_lines, fuzz_files, fuzz_losses


def test_losses_are_finite_or_refuse_their_input():
    counts = fuzz_losses.fuzz_losses(100, seed=1)
    assert sum(counts.values()) >= 100
    assert counts["finite"] > counts["error"]


def test_a_value_that_is_not_finite_is_noticed(monkeypatch):
    """The check itself can fail."""
    monkeypatch.setattr(fuzz_losses, "loss_of", lambda *_: lambda x, y, **more: x.sum() / 0)
    case = {"name": "gini", "examples": 2, "channels": 4, "classes": 3, "space": (), "seed": 0}
    case |= {"dtype": "float32", "labels": "integers", "masked": False}
    try:
        fuzz_losses.try_loss(case)
    except AssertionError as error:
        assert "the value is" in str(error)
    else:
        raise AssertionError("an infinite value passed")


def test_command_lines_start_or_end_in_one_error():
    counts = fuzz_command_lines.fuzz_command_lines(8, seed=1)
    assert sum(counts.values()) == 8


def test_damaged_files_end_in_an_error_that_names_them_or_are_read():
    counts = fuzz_files.fuzz_files(16, seed=1)
    assert sum(counts.values()) == 16
    assert counts["image: error"] and counts["weights: error"]


def test_files_are_damaged_in_every_way():
    rng = np.random.default_rng(0)
    whole = bytes(range(200))
    changed = [fuzz_files.damage(whole, rng, b"bomb") for _ in range(100)]
    assert len({len(x) for x in changed}) > 10
    assert any(x.startswith(b"bomb") for x in changed)
