"""Where the time of a training step on a CPU goes, by part of the step.

    taskset -c 0 python benchmarks/step_profile.py --out=results/step_profile.json

A trace of some steps of a case of benchmarks/train_step.py, on one thread, so that each operation's
time is its own; and the same step as jaxlib compiles it by default, with its library YNN. The parts
are the step's named scopes.
"""

import collections
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import train_step
from gini_jax.analysis.program import part_of
from gini_jax.data.loader import resident
from gini_jax.devices import YNN_OPTION, num_devices, replicate, shard
from gini_jax.training.state import init_state
from gini_jax.training.step import create_step

FLAGS = flags.FLAGS
_CASE = flags.DEFINE_string("case", "resnet18_width16", "A case of benchmarks/train_step.py.")
_STEPS = flags.DEFINE_integer("steps", 3, "Steps in the trace.")


def profile(options: dict[str, str]) -> dict[str, Any]:
    """Seconds per step, and milliseconds per step by part and by kind of operation."""
    network, settings, batch, size = train_step.CASES[_CASE.value]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, size, size, 3)).astype(np.uint8)
    labels = rng.integers(0, train_step.K, batch).astype(np.int32)
    experiment, split = train_step.experiment_of(network, settings, images, labels)
    state, data = replicate(init_state(experiment)), replicate(resident(split))
    order = shard(np.arange(batch, dtype=np.int32), num_devices())[:, None]
    lowered = create_step(experiment).lower(state, data, order)
    step = lowered.compile(compiler_options=options)
    scopes = scopes_of(step.as_text())
    state, metrics = step(state, data, order)
    jax.block_until_ready(metrics)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with jax.profiler.trace(folder):
            for _ in range(_STEPS.value):
                state, metrics = step(state, data, order)
                jax.block_until_ready(metrics)
        seconds = (time.perf_counter() - start) / _STEPS.value
        (file,) = Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(file))
        parts: collections.Counter[str] = collections.Counter()
        kinds: collections.Counter[str] = collections.Counter()
        for event in (e for plane in trace.planes for line in plane.lines for e in line.events):
            if event.name in scopes:
                milliseconds = event.duration_ns / 1e6 / _STEPS.value
                parts[" ".join(part_of(scopes[event.name]))] += milliseconds
                kinds[re.sub(r"[.\d]+$", "", event.name)] += milliseconds
    return {
        "seconds": round(seconds, 3),
        "by_part": {part: round(value, 1) for part, value in parts.most_common()},
        "by_kind": {kind: round(value, 1) for kind, value in kinds.most_common(12)},
    }


def scopes_of(program: str) -> dict[str, str]:
    """The scope of each instruction of a compiled program, by its name."""
    found = {}
    for line in program.splitlines():
        if match := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line):
            scope = re.search(r'op_name="([^"]*)"', line)
            found[match[1]] = scope[1] if scope else ""
    return found


def main(argv: list[str]) -> None:
    """Prints both profiles, and writes the figures."""
    del argv
    report: dict[str, Any] = {"case": _CASE.value, "jax": jax.__version__}
    report["threads"] = len(os.sched_getaffinity(0))
    for name, options in (("with YNN, as jaxlib's default", {}), ("gini_jax", YNN_OPTION)):
        report[name] = profile(options)
        print(name, json.dumps(report[name], indent=1), flush=True)
    if FLAGS.out:
        Path(FLAGS.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
