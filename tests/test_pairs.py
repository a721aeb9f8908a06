"""All pairs of features; see tests/helpers/pairs.py."""

import itertools
import os

import jax
import pytest

from gini_jax.errors import InputError
from gini_jax.modes.train import main as train
from tests.conftest import SHARED_TFDS
from tests.helpers import pairs

pytest.importorskip("covertable", reason="makes the pairs' rows with covertable, not installed")
PARTS = 24  # of the covering array, each a test


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of images that some of the data are."""
    folder = tmp_path_factory.mktemp("places")
    pairs.write_places(folder)
    return folder


@pytest.fixture(autouse=True)
def without_the_programs_of_other_rows():
    """Each row compiles its own; those of all rows would need many gigabytes."""
    yield
    jax.clear_caches()


def is_here(row, places):
    """Whether this machine has a row's data."""
    data = row.get("data")
    return (data != "tfds" or SHARED_TFDS.is_dir()) and (data != "hf" or (places / "hf").is_dir())


def test_each_pair_stands_in_a_row_or_is_refused():
    covered = {pair for row in pairs.rows() for pair in pairs.pairs_of(row)}
    assert all(map(pairs.go_together, pairs.rows()))
    refused = {tuple(row.items()) for row in pairs.refused_pairs()}
    columns = [[(name, value) for value in values] for name, values in pairs.COLUMNS.items()]
    for a, b in itertools.combinations(columns, 2):
        for pair in itertools.product(a, b):
            assert (pair in covered) != (pair in refused), pair


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_all_pairs(part, places, tmp_path):
    failed = []
    for i, row in enumerate(pairs.rows()):
        if i % PARTS != part or not is_here(row, places):
            continue
        try:
            pairs.run(row, places, tmp_path / str(i) / "run")
            if log := os.environ.get("PAIRS_LOG"):  # of benchmarks/pairs.py
                with open(log, "a") as file:
                    file.write(f"{i}\n")
        except Exception as error:
            failed.append(f"row {i}, {row}: {type(error).__name__}: {str(error)[:1500]}")
    assert not failed, "\n\n".join(failed)


@pytest.mark.slow
def test_what_does_not_go_together_is_refused_before_it_begins(places, tmp_path):
    for i, row in enumerate(pairs.refused_pairs()):
        if not is_here(row, places):
            continue
        workdir = tmp_path / str(i)
        with pytest.raises(InputError):
            train(pairs.row_config(row, places), workdir)
        assert not (workdir / "metrics.jsonl").exists(), row
