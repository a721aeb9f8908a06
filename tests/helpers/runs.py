"""What tests set up, what they look at in a run's folder, and what they break there."""

import json
from typing import NamedTuple

import jax

from gini_jax.data import load_dataset
from gini_jax.data.loader import resident
from gini_jax.data.sampling import epoch_order
from gini_jax.devices import order_by_device, replicate
from gini_jax.training.experiment import build_experiment
from gini_jax.training.state import init_state
from gini_jax.training.step import create_step

TIMES = {"train_seconds", "images_per_second", "device", "processor", "cpu_threads"}


class Setup(NamedTuple):
    """A run that is ready to step: `state, metrics = run.step(run.state, run.data, run.order)`."""

    experiment: object
    state: object
    step: object
    data: object
    order: object


def set_up(config, num_devices=1, *, dataset=None, model=None, num_steps=1):
    """Builds everything that steps of a config need, on some of the simulated devices."""
    devices = jax.devices()[:num_devices]
    dataset = dataset or load_dataset(config.dataset)
    experiment = build_experiment(config, dataset, devices)
    if model is not None:
        experiment = experiment._replace(model=model)
    train = dataset.splits["train"]
    order = epoch_order(config, 0, train.labels)
    return Setup(
        experiment,
        replicate(init_state(experiment), devices),
        create_step(experiment, devices, num_steps),
        replicate(resident(train), devices),
        order_by_device(order, num_devices),
    )


def without_times(result):
    return {key: value for key, value in result.items() if key not in TIMES}


def lines_of(workdir):
    """metrics.jsonl, times aside."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [without_times(json.loads(line)) for line in lines]


def steps_of(workdir):
    """Those of the whole checkpoints."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def cut_in_half(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
