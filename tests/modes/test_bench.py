"""Benches of finished runs: which are kept, which are left out, and of what data."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from gini_jax.analysis.runs import benches_in
from gini_jax.downstream import outliers
from gini_jax.downstream.subject import subject_of
from gini_jax.errors import InputError
from gini_jax.modes import bench, train
from tests.helpers import dense

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A run of one epoch."""
    config, workdir = dense.get_config("ce"), tmp_path_factory.mktemp("once")
    config.num_epochs = config.loss.start_epoch = 1
    train.main(config, workdir)
    return workdir


def test_benches_that_two_processes_measure_are_both_kept(tmp_path):
    def add(name):
        for i in range(10):
            bench._keep(tmp_path, f"{name}{i}", {"value": i, f"{name}{i}/curve": np.arange(i)})

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(add, "ab"))
    arrays, numbers = benches_in(tmp_path)
    names = {f"{name}{i}" for name in "ab" for i in range(10)}
    assert set(numbers) == names
    assert set(arrays) == {f"{name}/curve" for name in names}
    (tmp_path / "bench.json").write_text('{"a0": {"val')
    with pytest.raises(
        InputError, match=r"bench.json is damaged .*delete it, and run --mode=bench"
    ):
        benches_in(tmp_path)


@pytest.mark.slow
def test_of_several_benches_those_that_fit_are_measured(trained_once, capsys):
    table = bench.main(None, trained_once, benches="retrieval,shift")
    assert 0 <= table["recall_at_1"].item() <= 1
    assert "shift left out: it needs superclasses" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["digits", "folder without test/"])
def test_outliers_may_be_of_any_source(kind, trained_once, tmp_path):
    name = kind
    if kind != "digits":
        for label in ("ant", "bee"):
            (tmp_path / label).mkdir()
            for i in range(5):
                pixels = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / label / f"{i}.png")
        name = f"folder:{tmp_path}"
    found = outliers.measure(subject_of(trained_once, name))
    assert found["outliers"] == name
    assert 0 <= found["outlier_auroc_norm"] <= 1


def test_a_bench_that_compares_runs_needs_a_sweep(trained_once):
    with pytest.raises(InputError, match="--benches=small compares the runs of a sweep"):
        bench.main(None, trained_once, benches="small")
