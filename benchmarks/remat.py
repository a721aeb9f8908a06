"""Memory and time of a training step with and without `config.model.remat`.

    python benchmarks/remat.py --config=configs/cifar100_resnet18.py --config.model.width=16 \
        --config.batch_size=64

Temporaries are the compiler's count; times alternate between the two steps, and the ratio is the
median of the rounds' ratios. Images are random: the data set is not needed.
"""

import statistics
import time

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from gini_jax.data import Dataset, Split
from gini_jax.parallel import num_devices, replicate, shard
from gini_jax.step import create_step, init_state, resident
from gini_jax.train import build_experiment

_CONFIG = config_flags.DEFINE_config_file("config", "configs/cifar100_resnet18.py")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed steps of each kind.")
_SIZE = flags.DEFINE_integer("image_size", 32, "Height and width of the random images.")
_CLASSES = flags.DEFINE_integer("num_classes", 100, "Number of classes.")


def main(argv: list[str]) -> None:
    """Prints one line for each kind of step and one for their ratio."""
    del argv
    config = _CONFIG.value
    rng = np.random.default_rng(0)
    shape = (config.batch_size, _SIZE.value, _SIZE.value, 3)
    labels = rng.integers(0, _CLASSES.value, config.batch_size).astype(np.int32)
    split = Split(rng.integers(0, 256, shape).astype(np.uint8), labels)
    names = tuple(str(i) for i in range(_CLASSES.value))
    dataset = Dataset(dict.fromkeys(("train", "val", "test"), split), names, _SIZE.value)
    data = replicate(resident(split))
    order = shard(np.arange(config.batch_size, dtype=np.int32), num_devices())[:, None]

    steps, states = {}, {}
    for remat in (False, True):
        config.model.remat = remat
        experiment = build_experiment(config, dataset)
        step, states[remat] = create_step(experiment), replicate(init_state(experiment))
        temporaries = step.lower(states[remat], data, order).compile().memory_analysis()
        megabytes = temporaries.temp_size_in_bytes / 2**20
        print(f"remat {remat!s:5}: {megabytes:8.1f} MiB of temporaries a device")
        steps[remat] = step

    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(_ROUNDS.value + 1):
        for remat in (False, True):
            start = time.perf_counter()
            states[remat], metrics = steps[remat](states[remat], data, order)
            jax.block_until_ready(metrics)
            seconds[remat].append(time.perf_counter() - start)
    plain, recomputed = seconds[False][1:], seconds[True][1:]  # the first compiles
    ratio = statistics.median(b / a for a, b in zip(plain, recomputed, strict=True))
    for remat, times in ((False, plain), (True, recomputed)):
        print(f"remat {remat!s:5}: {statistics.median(times):8.3f} s a step, n={len(times)}")
    print(f"time with / without: {ratio:.2f} on {num_devices()} x {jax.devices()[0].device_kind}")


if __name__ == "__main__":
    app.run(main)
