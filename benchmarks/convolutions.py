"""GFLOP/s of the networks' convolutions on CPUs: the compiler's ways, and this project's own.

    python benchmarks/convolutions.py --out=results/convolutions.json

For each kernel: forward, the gradient with respect to the input and with respect to the weights,
by XLA with its library YNN (the default of jaxlib 0.10), by XLA without it, and by
`gini_jax.models.convolution`, which calls XLA where that is as fast. All ways take turns; medians
over the rounds. Run it under `taskset -c 0` for one thread.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags
from jax import lax

from gini_jax.devices import YNN_OPTION
from gini_jax.models.convolution import conv_general_dilated

_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed calls of each way.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")

# name -> images, side, channels in, channels out, kernel, stride, groups
KERNELS = {
    "width 16, stem": (256, 32, 3, 16, 3, 1, 1),
    "width 16, stage 1": (256, 32, 16, 16, 3, 1, 1),
    "width 16, stage 2, first": (256, 32, 16, 32, 3, 2, 1),
    "width 16, stage 2": (256, 16, 32, 32, 3, 1, 1),
    "width 16, stage 3": (256, 8, 64, 64, 3, 1, 1),
    "width 16, stage 4": (256, 4, 128, 128, 3, 1, 1),
    "width 64, stage 1": (64, 32, 64, 64, 3, 1, 1),
    "width 64, stage 2, first": (64, 32, 64, 128, 3, 2, 1),
    "width 64, stage 2": (64, 16, 128, 128, 3, 1, 1),
    "width 64, stage 3": (64, 8, 256, 256, 3, 1, 1),
    "width 64, stage 4": (64, 4, 512, 512, 3, 1, 1),
    "bottleneck 1x1, in": (128, 32, 64, 16, 1, 1, 1),
    "bottleneck 1x1, out": (128, 32, 16, 64, 1, 1, 1),
    "bottleneck 1x1, stride 2": (128, 32, 64, 128, 1, 2, 1),
    "CvT stem 7x7": (64, 32, 3, 64, 7, 4, 1),
    "CvT depthwise 3x3": (64, 8, 64, 64, 3, 1, 64),
    "CvT depthwise 3x3, stride 2": (64, 8, 64, 64, 3, 2, 64),
    "MobileNetV2 stem": (32, 128, 3, 32, 3, 2, 1),
    "MobileNetV2 1x1, in": (32, 32, 24, 144, 1, 1, 1),
    "MobileNetV2 1x1, out": (32, 32, 144, 24, 1, 1, 1),
    "MobileNetV2 depthwise 3x3": (32, 32, 144, 144, 3, 1, 144),
    "MobileNetV2 depthwise 3x3, stride 2": (32, 64, 96, 96, 3, 2, 96),
    "MobileNetV2 depthwise 3x3, last": (32, 4, 960, 960, 3, 1, 960),
}


def ways_of(shape: tuple[int, ...], part: str) -> tuple[dict[str, Callable[[], Any]], float]:
    """By name, calls that compute one part; and its floating-point operations."""
    images, side, channels, features, kernel, stride, groups = shape
    rng = np.random.default_rng(0)
    pad = (kernel - 1) // 2
    x = jax.device_put(rng.normal(size=(images, side, side, channels)).astype(np.float32))
    w = rng.normal(size=(kernel, kernel, channels // groups, features)).astype(np.float32)
    w = jax.device_put(w / kernel)
    options: dict[str, Any] = {
        "window_strides": (stride, stride),
        "padding": ((pad, pad), (pad, pad)),
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
        "feature_group_count": groups,
    }
    size = (side + 2 * pad - kernel) // stride + 1
    dy = jax.device_put(rng.normal(size=(images, size, size, features)).astype(np.float32))

    def program(convolve: Callable[..., Any]) -> Any:
        def forward(x: Any, w: Any) -> Any:
            return convolve(x, w, **options)

        if part == "forward":
            return lambda x, w, dy: forward(x, w)
        which = 0 if part == "input" else 1
        return lambda x, w, dy: jax.vjp(forward, x, w)[1](dy)[which]

    ways = {}
    for name, convolve, compiler_options in (
        ("XLA with YNN", lax.conv_general_dilated, {}),
        ("XLA", lax.conv_general_dilated, YNN_OPTION),
        ("gini_jax", conv_general_dilated, YNN_OPTION),
    ):
        lowered = jax.jit(program(convolve)).lower(x, w, dy)
        compiled = lowered.compile(compiler_options=compiler_options)
        ways[name] = lambda compiled=compiled: compiled(x, w, dy).block_until_ready()
    return ways, 2.0 * images * size * size * features * kernel**2 * channels / groups


def main(argv: list[str]) -> None:
    """Prints a line per kernel and part, and writes the figures."""
    del argv
    report: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "rounds": _ROUNDS.value,
        "gflops": {},
    }
    for name, shape in KERNELS.items():
        report["gflops"][name] = {"shape": shape}
        for part in ("forward", "input", "weights"):
            ways, operations = ways_of(shape, part)
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(_ROUNDS.value + 1):
                for way, call in ways.items():
                    start = time.perf_counter()
                    call()
                    seconds[way].append(time.perf_counter() - start)
            rates = {k: operations / statistics.median(v[1:]) / 1e9 for k, v in seconds.items()}
            report["gflops"][name][part] = {k: round(v, 1) for k, v in rates.items()}
            shown = "  ".join(f"{way} {rate:6.1f}" for way, rate in rates.items())
            print(f"{name:28} {part:8} {shown}", flush=True)
            if _OUT.value:
                with open(_OUT.value, "w") as file:
                    json.dump(report, file, indent=1)


if __name__ == "__main__":
    app.run(main)
