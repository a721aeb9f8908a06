"""The queue of runs of the published recipe: benchmarks/gpu_queue.py."""

import importlib
import itertools
import json

import pytest

from benchmarks import gpu_queue
from gini_jax.config.change import changed
from gini_jax.training.checks import check_config
from tests.conftest import SHARED_TFDS


def test_jobs_are_valid_runs_of_the_recipe_and_the_papers_claim_comes_first():
    jobs = list(gpu_queue.jobs())
    assert len({job.name for job in jobs}) == len(jobs)
    first = list(itertools.takewhile(lambda job: job.arm in gpu_queue.CLAIM, jobs))
    assert [job.arm for job in first] == list(gpu_queue.CLAIM) * gpu_queue.SEEDS
    for job in jobs:
        config = importlib.import_module(f"configs.cifar100_{job.network}").get_config(
            job.objective
        )
        config = changed(config, job.settings | {"seed": job.seed})
        check_config(config, num_devices=1)
        assert config.num_epochs == 250 and config.objective == job.objective


@pytest.mark.slow
def test_a_queue_that_ran_out_of_time_goes_on_where_it_ended(tmp_path, monkeypatch):
    if not SHARED_TFDS.is_dir():
        pytest.skip("reads CIFAR-100 of ../shared/tfds, which is not here")
    jobs = [job for job in gpu_queue.jobs() if job.seed == 0][1:2]
    monkeypatch.setattr(gpu_queue, "jobs", lambda: iter(jobs))
    given = (tmp_path / "out.json", tmp_path / "runs", str(SHARED_TFDS))
    assert gpu_queue.work_off(*given, minutes=0.1, parallel=1, small=True) == 0
    assert gpu_queue.work_off(*given, minutes=5, parallel=1, small=True) == 1
    row = json.loads(given[0].read_text())["rows"][0]
    assert (row["network"], row["arm"], row["seed"]) == ("resnet18", "gini_kl", 0)
    assert 0 <= row["result"]["test_accuracy"] <= 1
    assert gpu_queue.work_off(*given, minutes=5, parallel=1, small=True) == 1  # nothing is left
