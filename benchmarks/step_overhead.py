"""Memory and time of a training step of a config, against the same with one setting changed.

    python benchmarks/step_overhead.py --config=configs/cifar100_resnet18.py:ce \
        --config.batch_size=32 --config.loss.start_epoch=1 --change=objective=gini_kl
    python benchmarks/step_overhead.py --config=configs/cifar100_resnet18.py \
        --config.model.width=16 --config.batch_size=64 --change=model.remat=True

Temporaries are the compiler's count. Times alternate between the two steps; the ratio is the median
of the rounds' ratios. Images are random: the data set is not needed.
"""

import ast
import contextlib
import statistics
import time

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from gini_jax.config.change import set_objective
from gini_jax.data import Dataset, Split
from gini_jax.data.loader import resident
from gini_jax.devices import num_devices, replicate, shard
from gini_jax.training.experiment import build_experiment
from gini_jax.training.state import init_state
from gini_jax.training.step import create_step

_CONFIG = config_flags.DEFINE_config_file("config", "configs/cifar100_resnet18.py:ce")
_CHANGE = flags.DEFINE_string("change", "objective=gini_kl", "KEY=VALUE of the other step.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed steps of each kind.")
_SIZE = flags.DEFINE_integer("image_size", 32, "Height and width of the random images.")
_CLASSES = flags.DEFINE_integer("num_classes", 100, "Number of classes.")


def main(argv: list[str]) -> None:
    """Prints memory and time of both steps and the ratio of their times."""
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

    key, _, value = _CHANGE.value.partition("=")
    changed = config.copy_and_resolve_references()
    with contextlib.suppress(ValueError):  # a name is no literal
        value = ast.literal_eval(value)
    if key == "objective":
        set_objective(changed, value)
    else:
        changed.update_from_flattened_dict({key: value})
    steps, states = {}, {}
    for name, variant in (("as configured", config), (_CHANGE.value, changed)):
        experiment = build_experiment(variant, dataset)
        state = replicate(init_state(experiment))
        steps[name] = create_step(experiment).lower(state, data, order).compile()
        states[name] = state
        megabytes = steps[name].memory_analysis().temp_size_in_bytes / 2**20
        print(f"{name:24} {megabytes:8.1f} MiB of temporaries a device")

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(_ROUNDS.value + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            states[name], metrics = step(states[name], data, order)
            jax.block_until_ready(metrics)
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        print(f"{name:24} {statistics.median(times[1:]):8.3f} s a step, n={len(times) - 1}")
    pairs = zip(*(times[1:] for times in seconds.values()), strict=True)
    ratios = sorted(second / first for first, second in pairs)
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    print(
        f"ratio of the times       {statistics.median(ratios):8.3f} (quartiles {low:.3f}, "
        f"{high:.3f}) on {num_devices()} x {jax.devices()[0].device_kind}"
    )


if __name__ == "__main__":
    app.run(main)
