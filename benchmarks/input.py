"""Images a second of each way to feed a step, alone and in training, against torch's DataLoader.

    python benchmarks/input.py --config=configs/cifar100_resnet18.py --config.model.width=8 \
        --config.batch_size=128 --config.dataset.data_dir=DIR

Alone: batches are cropped, flipped and brought to floats, and nothing is trained on them. In
training: the share of the time that the run waits for its next batch, and the time of a step fed by
the stream over that of one fed from the device. All ways take turns; medians over the rounds. With
torch installed its DataLoader does the same two transforms, written with torch's operations.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from gini_jax.data import load_dataset
from gini_jax.data.loader import DeviceFeed, StreamFeed, as_images, resident_batch
from gini_jax.devices import AXIS, map_over_devices, num_devices, replicate
from gini_jax.training.experiment import build_experiment
from gini_jax.training.state import init_state
from gini_jax.training.step import augmented_batch, create_step

_CONFIG = config_flags.DEFINE_config_file("config", "configs/cifar100_resnet18.py")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed rounds of each way.")
_BATCHES = flags.DEFINE_integer("batches", 40, "Batches a round, alone.")
_STEPS = flags.DEFINE_integer("steps", 10, "Training steps a round.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")
_FEEDS = {"device": DeviceFeed, "stream": StreamFeed}


def alone(experiment: Any, train: Any, name: str) -> Iterator[None]:
    """Brings one augmented batch after the other to the device."""

    def look(state, *arguments):
        if name == "device":
            batch = resident_batch(*arguments, state.step, experiment.stored_shape)
        else:
            rows = jax.tree.map(lambda x: x[0], arguments[0])
            batch = as_images(rows, experiment.stored_shape)
        seen = augmented_batch(state, batch, experiment, AXIS)
        seen = jax.lax.all_gather((seen.images, seen.labels), AXIS)
        return state.replace(step=state.step + 1), seen

    mapped = map_over_devices(look, in_axes=(None, None, 0) if name == "device" else (None, 0))
    feed = _FEEDS[name](train, experiment.config)
    state, step = replicate(init_state(experiment)), 0
    while True:
        state, seen = mapped(state, *feed.arguments(step, 1))
        jax.block_until_ready(seen)
        step += 1
        yield


def with_torch(experiment: Any, train: Any, workers: int) -> Iterator[None]:
    """The same by torch's DataLoader; raises ImportError where torch is missing."""
    import torch

    config, size = experiment.config, experiment.image_size
    padding = config.augment.crop_padding

    class Images(torch.utils.data.Dataset):
        """Channels first, as torch's networks take them."""

        def __init__(self):
            images = np.ascontiguousarray(np.moveaxis(np.asarray(train.images), -1, 1))
            self.images, self.labels = torch.from_numpy(images), train.labels

        def __len__(self):
            return len(self.labels)

        def __getitem__(self, index):
            image = torch.nn.functional.pad(self.images[index], [padding] * 4)
            row, column = torch.randint(0, 2 * padding + 1, (2,)).tolist()
            image = image[:, row : row + size, column : column + size]
            if torch.rand(()) < 0.5:
                image = image.flip(-1)
            return image.float() / 255, int(self.labels[index])

    loader = torch.utils.data.DataLoader(
        Images(), config.batch_size, shuffle=True, drop_last=True, num_workers=workers
    )
    while True:
        for _ in loader:
            yield


def training(experiment: Any, train: Any, name: str) -> Callable[[int], tuple[float, float]]:
    """A function that trains so many steps and gives the seconds of waiting and of all."""
    step = create_step(experiment, feed=name)
    feed = _FEEDS[name](train, experiment.config)
    state, done = replicate(init_state(experiment)), 0

    def run(count: int) -> tuple[float, float]:
        nonlocal state, done
        waited, start = 0.0, time.perf_counter()
        for _ in range(count):
            before = time.perf_counter()
            arguments = feed.arguments(done, 1)
            waited += time.perf_counter() - before
            state, metrics = step(state, *arguments)
            done += 1
        jax.block_until_ready(metrics)
        return waited, time.perf_counter() - start

    return run


def main(argv: list[str]) -> None:
    """Prints the figures and, where `--out` is given, writes them."""
    del argv
    config = _CONFIG.value
    config.steps_per_call = 1
    dataset = load_dataset(config.dataset)
    experiment = build_experiment(config, dataset)
    train = dataset.splits["train"]
    ways = {name: alone(experiment, train, name) for name in _FEEDS}
    for workers in (0, 2):
        ways[f"torch, {workers} workers"] = with_torch(experiment, train, workers)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(_ROUNDS.value + 1):
        for name, way in list(ways.items()):
            start = time.perf_counter()
            try:
                for _ in range(_BATCHES.value):
                    next(way)
            except ImportError as error:
                print(f"{name}: left out ({error})")
                del ways[name], rates[name]
                continue
            if round_number:  # the first one compiles and starts workers
                seconds = time.perf_counter() - start
                rates[name].append(config.batch_size * _BATCHES.value / seconds)
    figures: dict[str, Any] = {"images_per_second_alone": {n: _spread(r) for n, r in rates.items()}}

    runs = {name: training(experiment, train, name) for name in _FEEDS}
    waits: dict[str, list[float]] = {name: [] for name in runs}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(_ROUNDS.value + 1):
        for name, run in runs.items():
            waited, seconds = run(_STEPS.value)
            if round_number:
                waits[name].append(waited / seconds)
                times[name].append(seconds)
    figures["share_of_training_waiting"] = {n: _spread(w) for n, w in waits.items()}
    ratios = [s / d for s, d in zip(times["stream"], times["device"], strict=True)]
    figures["training_time_stream_over_device"] = _spread(ratios)
    figures |= {
        "config": config.to_dict(),
        "rounds": _ROUNDS.value,
        "batches_a_round": _BATCHES.value,
        "steps_a_round": _STEPS.value,
        "hardware": f"{num_devices()} x {jax.devices()[0].device_kind}",
        "jax_version": jax.__version__,
    }
    figures["config"]["dataset"]["data_dir"] = ""  # of this machine
    shown = {key: value for key, value in figures.items() if key != "config"}
    print(json.dumps(shown, indent=2))
    if _OUT.value:
        with open(_OUT.value, "w") as file:
            file.write(json.dumps(figures, indent=2) + "\n")


def _spread(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "low_quartile": low, "high_quartile": high, "n": len(values)}


if __name__ == "__main__":
    app.run(main)
