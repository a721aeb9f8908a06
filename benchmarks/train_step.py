"""Images per second of a training step, against PyTorch doing the same step.

    python benchmarks/train_step.py --out=results/train_step.json
    python benchmarks/train_step.py --evaluation --out=results/evaluation.json

The same network, terms and SGD with momentum on the same random images, on whatever device is
there: ResNets of width 16 and 64, and CvT-13. All ways take turns; medians and quartiles over the
rounds. The share of the device's peak is the step's rate of operations, as XLA counts them, over
that of a large float32 product. `--cases` picks some of the settings. With `--xla_convolutions` a
step whose convolutions are all XLA's own takes part too. With `--evaluation` it is a pass over
eight batches, in evaluation mode. Without torch the comparison is left out, and a line says so.
The file keeps the figures of other kinds of processor.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import lax

from benchmarks import torch_networks
from benchmarks.machine import write_by_kind
from gini_jax.config import default_config, set_model
from gini_jax.data.loader import resident
from gini_jax.data.source import Dataset, Split
from gini_jax.devices import num_devices, prepare_cpu, replicate, shard
from gini_jax.evals import Extractor
from gini_jax.training.experiment import build_experiment
from gini_jax.training.state import Experiment, init_state
from gini_jax.training.step import create_step

_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed steps of each way.")
_CASES = flags.DEFINE_list("cases", None, "Names of the settings; all by default.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")
_EVALUATION = flags.DEFINE_bool("evaluation", False, "Time evaluation passes instead.")
_XLA = flags.DEFINE_bool("xla_convolutions", False, "Also time XLA's own convolutions.")
K = 100

# name -> network, its settings, batch, image size
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "resnet18_width16": ("resnet18", {"width": 16}, 256, 32),
    "resnet18_width64": ("resnet18", {"width": 64}, 64, 32),
    "resnet50_width16": ("resnet50", {"width": 16}, 128, 32),
    "cvt13_32": ("cvt13", {"activation": "gelu"}, 64, 32),
    "cvt13_64": ("cvt13", {"activation": "gelu"}, 32, 64),
}


def experiment_of(
    name: str, settings: dict[str, Any], images: np.ndarray, labels: np.ndarray
) -> tuple[Experiment, Split]:
    """A run on some images, without augmentation: PyTorch's has none."""
    config = default_config("gini_kl")
    set_model(config, name, **settings)
    config.batch_size = config.eval_batch_size = len(labels)
    config.loss.layers = ("stage3",) if name.startswith("cvt") else ("stage4",)
    split = Split(images, labels)
    names = tuple(map(str, range(K)))
    dataset = Dataset(dict.fromkeys(("train", "val", "test"), split), names, images.shape[1])
    return build_experiment(config, dataset), split


def jax_evaluation(experiment: Experiment, split: Split) -> Callable[[], None]:
    """The evaluation pass of gini_jax over the images, eight times."""
    extract = Extractor(experiment.model, experiment.config, experiment.image_size)
    variables = jax.device_get(init_state(experiment).variables)
    eight = Split(np.tile(split.images, (8, 1, 1, 1)), np.tile(split.labels, 8))
    return lambda: extract(variables, eight) and None


def peak_flops(size: int = 4096, rounds: int = 5) -> float:
    """Operations per second of a large product, in the best of some rounds: the device's peak."""
    size = size if jax.default_backend() != "cpu" else size // 4
    matrix = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def jax_step(experiment: Experiment, split: Split) -> Callable[[], None]:
    """The training step of gini_jax; its `flops` are the operations that XLA counts."""
    labels = split.labels
    state, data = replicate(init_state(experiment)), replicate(resident(split))
    order = shard(np.arange(len(labels), dtype=np.int32), num_devices())[:, None]
    step = create_step(experiment).lower(state, data, order).compile()

    def call() -> None:
        nonlocal state
        state, metrics = step(state, data, order)
        jax.block_until_ready(metrics)

    call.flops = step.cost_analysis()["flops"]  # type: ignore[attr-defined]
    return call


def time_case(name: str) -> dict[str, Any]:
    """Seconds of each way, round by round."""
    network, settings, batch, size = CASES[name]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, size, size, 3)).astype(np.uint8)
    labels = rng.integers(0, K, batch).astype(np.int32)
    ours = jax_evaluation if _EVALUATION.value else jax_step
    run = experiment_of(network, settings, images, labels)
    ways = {"gini_jax": ours(*run)}
    if _XLA.value:
        path = "gini_jax.models.{}.conv_general_dilated"
        with (
            mock.patch(path.format("resnet"), lax.conv_general_dilated),
            mock.patch(path.format("cvt"), lax.conv_general_dilated),
        ):
            ways["gini_jax, XLA's convolutions"] = ours(*run)
    theirs = torch_networks.evaluations if _EVALUATION.value else torch_networks.steps
    ways |= theirs(network, settings, images, labels, K)
    if _EVALUATION.value:
        batch *= 8
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(_ROUNDS.value + 1):
        for way, call in ways.items():
            start = time.perf_counter()
            call()
            seconds[way].append(time.perf_counter() - start)
    seconds = {way: times[1:] for way, times in seconds.items()}  # the first warms up
    result = {"batch": batch, "image_size": size, **settings, **figures(batch, seconds)}
    if flops := getattr(ways["gini_jax"], "flops", None):
        share = flops / statistics.median(seconds["gini_jax"]) / peak_flops()
        result["share_of_peak"] = round(share, 3)
    return result


def figures(batch: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Images per second and ratios, as medians and quartiles over the rounds."""
    ours = seconds["gini_jax"]
    result: dict[str, Any] = {"rounds": len(ours)}
    for way, times in seconds.items():
        rate = [batch / t for t in times]
        faster = [theirs / own for theirs, own in zip(times, ours, strict=True)]
        result[way] = {
            "images_per_second": _quartiles(rate),
            "their_time_over_ours": _quartiles(faster),
        }
    return result


def _quartiles(values: list[float]) -> list[float]:
    """First quartile, median, third quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [round(value, 3) for value in (low, middle, high)]


def main(argv: list[str]) -> None:
    """Prints a line per setting and way, and writes the figures."""
    del argv
    prepare_cpu()
    report: dict[str, Any] = {
        "device": f"{num_devices()} x {jax.devices()[0].device_kind}",
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "torch": torch_networks.version(),
        "cases": {},
    }
    for name in _CASES.value or CASES:
        before = os.getloadavg()[0]
        case = time_case(name)
        report["cases"][name] = case | {"load_before": round(before, 2)}
        if "share_of_peak" in case:
            print(
                f"{name:18} the step reaches {case['share_of_peak']:.0%} of a large product's rate"
            )
        for way, value in case.items():
            if isinstance(value, dict):
                low, middle, high = value["their_time_over_ours"]
                print(
                    f"{name:18} {way:30} {value['images_per_second'][1]:8.1f} images/s   "
                    f"time / ours {middle:.2f} ({low:.2f} to {high:.2f})",
                    flush=True,
                )
        if _OUT.value:
            write_by_kind(Path(_OUT.value), report)


if __name__ == "__main__":
    app.run(main)
