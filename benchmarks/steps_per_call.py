"""Time and result of an epoch in calls of one step, against calls of several.

    python benchmarks/steps_per_call.py --out=results/steps_per_call.json

The default config, digits. The ways take turns; ratios are those of a round. The difference is the
largest one of the parameters after the epoch, over their largest absolute value.
"""

import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from configs import digits
from gini_jax.data import load_dataset
from gini_jax.data.sampling import calls_of_epoch
from gini_jax.devices import prepare_cpu, replicate
from gini_jax.training.experiment import build_experiment
from gini_jax.training.state import init_state
from gini_jax.training.stepper import Stepper

_COUNTS = flags.DEFINE_list("counts", ["1", "3", "10"], "Steps per call.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Timed epochs of each way.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")


def epoch_of(stepper: Stepper) -> tuple[float, Any]:
    """Seconds of the first epoch, and the parameters after it."""
    experiment = stepper.experiment
    state = jax.block_until_ready(replicate(init_state(experiment)))
    start = time.perf_counter()
    for step, count in calls_of_epoch(
        0, experiment.steps_per_epoch, experiment.config.steps_per_call
    ):
        state, metrics = stepper(state, step, count)
        jax.device_get(metrics)
    return time.perf_counter() - start, jax.device_get(state.params)


def main(argv: list[str]) -> None:
    """Prints and writes the figures."""
    del argv
    prepare_cpu()
    steppers = {}
    for count in map(int, _COUNTS.value):
        config = digits.get_config()
        config.steps_per_call = count
        dataset = load_dataset(config.dataset)
        steppers[count] = Stepper(build_experiment(config, dataset), dataset)
    seconds: dict[int, list[float]] = {count: [] for count in steppers}
    params: dict[int, Any] = {}
    for _ in range(_ROUNDS.value + 1):  # the first round compiles
        for count, stepper in steppers.items():
            taken, params[count] = epoch_of(stepper)
            seconds[count].append(taken)
    first = min(steppers)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(params[first]))
    cases = {}
    for count, times in seconds.items():
        ratios = [b / a for a, b in zip(seconds[first][1:], times[1:], strict=True)]
        apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), params[first], params[count])
        cases[str(count)] = {
            "seconds": round(statistics.median(times[1:]), 4),
            "ratio": [round(x, 3) for x in statistics.quantiles(ratios, n=4)],
            "difference": float(max(jax.tree.leaves(apart)) / largest),
        }
        print(f"{count:3} steps per call: {cases[str(count)]}")
    if _OUT.value:
        report = {
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "jax": jax.__version__,
            "rounds": _ROUNDS.value,
            "steps": next(iter(steppers.values())).experiment.steps_per_epoch,
            "cases": cases,
        }
        Path(_OUT.value).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
