"""Time of the losses, forward and backward, against PyTorch eager and the machine's bandwidth.

    pip install torch==2.13.0
    python benchmarks/losses.py --rounds=15

Both compute 0.5 gini + 0.5 kl and the gradient by the activations, alternating; medians of the
rounds, and the median of their ratios. A case's share of the copy bandwidth counts the activations
read once and their gradient written once. Our gradient goes into the buffer of the one before,
donated, as in a training step; before five timed calls come two untimed ones, after a pause in
which the other library's threads stop to spin.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags

from gini_jax.losses import discriminability_loss

_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Timed rounds of each kind.")
CASES = {"[256, 4, 4, 512] K=100": ((256, 4, 4, 512), 100)}
CASES["[128, 7, 7, 2048] K=102"] = ((128, 7, 7, 2048), 102)
CASES["[1024, 2048] K=1000"] = ((1024, 2048), 1000)
EPS = 1e-10


def seconds_of(call: Callable[[], object]) -> float:
    """Wall time of a call: the mean of five in a row."""
    start = time.perf_counter()
    for _ in range(5):
        call()
    return (time.perf_counter() - start) / 5


def torch_call(features: np.ndarray, labels: np.ndarray, num_classes: int) -> Callable[[], object]:
    """PyTorch eager, with the product with one-hot rows."""
    a = torch.tensor(features, requires_grad=True)
    y = torch.nn.functional.one_hot(torch.tensor(labels), num_classes).float()

    def call() -> object:
        a.grad = None
        z = a.abs().flatten(1, -2).mean(1) if a.ndim > 2 else a.abs()
        mass = y.sum(0)
        s = z.T @ y / (mass + EPS)
        p = s / (s.sum(1, keepdim=True) + EPS)
        q = (p.sum(0) + EPS) / (p.sum() + num_classes * EPS)
        t = mass / mass.sum()
        loss = 0.5 * (1 - (p * p).sum(1)).mean()
        loss = loss + 0.5 * (torch.xlogy(t, t) - t * torch.log(q)).sum()
        loss.backward()
        return a.grad

    return call


def jax_call(features: np.ndarray, labels: np.ndarray, num_classes: int, dtype: str, onehot: bool):
    """Ours, compiled, with integer labels or with one-hot rows."""
    a, y = jnp.asarray(features, dtype), jnp.asarray(labels)
    y = jax.nn.one_hot(y, num_classes) if onehot else y

    def step(a, y, buffer):
        del buffer  # what the gradient is written to
        return jax.value_and_grad(
            lambda a: discriminability_loss(a, y, num_classes=num_classes)[0]
        )(a)

    compiled = jax.jit(step, donate_argnums=2, keep_unused=True)
    gradient = jnp.zeros_like(a)

    def call():
        nonlocal gradient
        _, gradient = compiled(a, y, gradient)
        jax.block_until_ready(gradient)

    return call


def main(argv: list[str]) -> None:
    """Prints a line for each case and kind."""
    del argv
    rng = np.random.default_rng(0)
    source = np.ones(2**26, np.float32)
    target = np.empty_like(source)
    copies = [seconds_of(lambda: np.copyto(target, source)) for _ in range(10)]
    bandwidth = 2 * source.nbytes / statistics.median(copies)
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s; {torch.get_num_threads()} torch threads")
    cases: dict[str, dict[str, dict[str, float]]] = {name: {} for name in CASES}
    for name, (shape, num_classes) in CASES.items():
        features = np.maximum(rng.normal(size=shape), 0).astype(np.float32)
        labels = rng.integers(0, num_classes, shape[0])
        calls = {"torch eager": torch_call(features, labels, num_classes)}
        for dtype in ("float32", "bfloat16"):
            for onehot in (False, True):
                kind = f"{dtype}, {'one-hot' if onehot else 'integers'}"
                calls[kind] = jax_call(features, labels, num_classes, dtype, onehot)
        times: dict[str, list[float]] = {kind: [] for kind in calls}
        for _ in range(_ROUNDS.value + 1):
            for kind, call in calls.items():
                time.sleep(0.1)
                call(), call()
                times[kind].append(seconds_of(call))
        print(f"{name}, n={_ROUNDS.value}")
        for kind, values in times.items():
            values = values[1:]  # the first compiles
            pairs = zip(times["torch eager"][1:], values, strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            size = features.nbytes // (2 if "bfloat16" in kind else 1)
            median = statistics.median(values)
            share = 2 * size / median / bandwidth
            cases[name][kind] = {
                "milliseconds": round(median * 1e3, 3),
                "torch_over_this": round(ratio, 3),
                "share_of_copy_bandwidth": round(share, 3),
            }
            print(
                f"  {kind:20} {median * 1e3:8.2f} ms   torch eager / this {ratio:6.2f}   "
                f"{100 * share:4.0f} % of copy bandwidth"
            )
    if _OUT.value:
        report = {
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "cores": os.cpu_count(),
            "jax": jax.__version__,
            "torch": torch.__version__,
            "rounds": _ROUNDS.value,
            "copy_gigabytes_per_second": round(bandwidth / 1e9, 2),
            "cases": cases,
        }
        Path(_OUT.value).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
