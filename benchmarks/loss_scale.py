"""Memory and time of losses over pairs in large batches, alone and in a training step.

    pip install torch==2.13.0 pytorch-metric-learning==2.9.0
    python benchmarks/loss_scale.py --out=results/loss_scale.json

The first part takes the value and the gradient of SupCon for 1,024 to 65,536 embeddings of 128
numbers, in each of several ways; each measurement is a process of its own, which ends when it needs
more than 8 GiB. The ways alternate. Memory is the process's largest, above that before the call; it
holds the gradient, and not the embeddings. `cached` goes through a network of two layers.

The second part compiles a step of SimCLR of 4,096 images, so 8,192 views, through a ResNet-18 of
width 16 in 16 micro-batches, and one of the paper's terms of 8,192 images, also in 16: the same
forward and backward passes. Temporaries are the compiler's count. The steps alternate; their time
is that of a quarter of the images.
"""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from absl import app, flags

from configs import cifar100_resnet18
from gini_jax import losses
from gini_jax.config.change import changed
from gini_jax.data import Dataset, Split
from gini_jax.data.loader import resident
from gini_jax.devices import num_devices, replicate, shard
from gini_jax.training.experiment import build_experiment
from gini_jax.training.state import init_state
from gini_jax.training.step import create_step

_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds in which the ways take turns.")
_WAY = flags.DEFINE_string("way", "", "Measure this way in this process.")
_SIZE = flags.DEFINE_integer("size", 1024, "Embeddings, for --way.")
_SIZES = flags.DEFINE_list("sizes", ["1024", "4096", "16384", "65536"], "Numbers of embeddings.")
_IMAGES = flags.DEFINE_integer("images", 4096, "Images of the step of SimCLR; 0: no step.")
_TIMED = flags.DEFINE_integer("timed_images", 1024, "Images of the steps whose time is taken.")
CHANNELS, CHUNK, PARTS, LIMIT = 128, 512, 16, 8 * 2**30
TORCH = "pytorch-metric-learning"


def jax_call(way: str, x: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    """Value and gradient in a way, compiled."""
    labels = jnp.asarray(y)
    if way == "cached":
        keys = jax.random.split(jax.random.key(0))
        given = [jax.random.normal(key, (CHANNELS, CHANNELS)) / 11 for key in keys]

        def network(params: list[jax.Array], x: jax.Array) -> jax.Array:
            return jax.nn.relu(x @ params[0]) @ params[1]

        def loss(z: jax.Array, labels: jax.Array) -> jax.Array:
            return losses.supcon_loss(z, labels, chunk_size=CHUNK)

        step = losses.cached_value_and_grad(loss, network, PARTS)
        compiled = jax.jit(step).lower(given, jnp.asarray(x), labels).compile()
        arguments: tuple[Any, ...] = (given, jnp.asarray(x), labels)
    else:
        import optax

        ways = {
            "direct": losses.supcon_loss,
            "chunks": lambda x, y: losses.supcon_loss(x, y, chunk_size=CHUNK),
            "optax ntxent": lambda x, y: optax.losses.ntxent(x, y, 0.1),
        }
        arguments = (jnp.asarray(x), labels)
        compiled = jax.jit(jax.value_and_grad(ways[way])).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def torch_call(x: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    """The same with pytorch-metric-learning."""
    import torch
    from pytorch_metric_learning.losses import SupConLoss

    loss, labels = SupConLoss(temperature=0.1), torch.tensor(y)
    features = torch.tensor(x, requires_grad=True)

    def call() -> None:
        features.grad = None
        loss(features, labels).backward()

    return call


def measure(way: str, size: int) -> None:
    """Prints a line of JSON: seconds and bytes; null where the memory is not enough."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, CHANNELS)).astype(np.float32)
    y = (np.arange(size) // 16).astype(np.int32)
    try:
        _measure(torch_call(x, y) if way == TORCH else jax_call(way, x, y))
    except jax.errors.JaxRuntimeError as error:  # one array is larger than the memory
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print("null", flush=True)


def _measure(call: Callable[[], Any]) -> None:
    process, running = psutil.Process(), threading.Event()
    before, largest = process.memory_info().rss, 0

    def watch() -> None:
        nonlocal largest
        while not running.is_set():
            largest = max(largest, process.memory_info().rss - before)
            if largest > LIMIT:
                print("null", flush=True)
                os._exit(0)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    call()
    seconds = [time.perf_counter() - start]
    running.set()
    watcher.join()
    while sum(seconds) < 2:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    timed = seconds[1:] or seconds
    print(json.dumps({"seconds": statistics.median(timed), "bytes": largest}), flush=True)


def scale() -> dict[str, dict[str, list[Any]]]:
    """By way and size, the measurements of the rounds."""
    found: dict[str, dict[str, list[Any]]] = {}
    for _ in range(_ROUNDS.value):
        for size in _SIZES.value:
            for way in ("direct", "chunks", "cached", "optax ntxent", TORCH):
                done = found.setdefault(way, {})
                if any(None in done[n] for n in done if int(n) <= int(size)):
                    continue  # a smaller batch did not fit
                command = [sys.executable, __file__, f"--way={way}", f"--size={size}"]
                answer = subprocess.run(command, capture_output=True, text=True)
                if answer.returncode:
                    raise RuntimeError(f"{way}, {size}: {answer.stderr[-2000:]}")
                value = json.loads(answer.stdout.splitlines()[-1])
                done.setdefault(size, []).append(value)
                print(f"{way:24} {size:>6} {value}", flush=True)
    return found


def compiled_step(objective: str, images: int, parts: int) -> tuple[Any, list[Any]]:
    """The compiled step of a ResNet-18 of width 16 on random images, and its arguments."""
    settings = {"batch_size": images, "grad_accumulation": parts, "model.width": 16}
    config = changed(cifar100_resnet18.get_config(objective), settings | {"loss.start_epoch": 1})
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 100, images).astype(np.int32)
    split = Split(rng.integers(0, 256, (images, 32, 32, 3)).astype(np.uint8), labels)
    names = tuple(str(i) for i in range(100))
    experiment = build_experiment(config, Dataset({"train": split, "test": split}, names, 32))
    order = shard(np.arange(images, dtype=np.int32), num_devices())[:, None]
    arguments = [replicate(init_state(experiment)), replicate(resident(split)), order]
    return create_step(experiment).lower(*arguments).compile(), arguments


def simclr(images: int, timed: int) -> dict[str, Any]:
    """Temporaries of the steps of SimCLR and of the paper's terms, and times with fewer images."""

    def both(images: int) -> dict[str, tuple[Any, list[Any]]]:
        one, other = (("simclr", images), ("gini_kl", 2 * images))
        return {one[0]: compiled_step(*one, PARTS), other[0]: compiled_step(*other, PARTS)}

    measured = both(images)
    measured["simclr, one micro-batch"] = compiled_step("simclr", images // PARTS, 1)
    memory = {k: step.memory_analysis().temp_size_in_bytes for k, (step, _) in measured.items()}
    print(memory, flush=True)
    del measured
    steps = both(timed)
    seconds: dict[str, list[float]] = {"simclr": [], "gini_kl": []}
    for _ in range(_ROUNDS.value + 1):
        for name, times in seconds.items():
            step, (state, data, order) = steps[name]
            start = time.perf_counter()
            state, metrics = step(state, data, order)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - start)
            steps[name][1][0] = state
            print(f"{name:10} {times[-1]:.2f} s", flush=True)
    ratios = [a / b for a, b in zip(*(times[1:] for times in seconds.values()), strict=True)]
    found = {"images": images, "bytes": memory, "timed_images": timed}
    return found | {"seconds": seconds, "ratios": ratios}


def main(argv: list[str]) -> None:
    """Measures, and writes the file."""
    del argv
    if _WAY.value:
        measure(_WAY.value, _SIZE.value)
        return
    report: dict[str, Any] = {"cores": os.cpu_count(), "jax": jax.__version__, "chunk": CHUNK}
    out = Path(_OUT.value or os.devnull)
    if out.is_file():  # what is not measured again stays
        report = json.loads(out.read_text()) | report
    if any(_SIZES.value):
        report["scale"] = scale()
        out.write_text(json.dumps(report, indent=1) + "\n")
    if _IMAGES.value:
        report["step"] = simclr(_IMAGES.value, _TIMED.value)
        out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
