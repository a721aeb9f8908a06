"""Time of the losses over pairs and of learned vectors against pytorch-metric-learning.

    pip install torch==2.13.0 pytorch-metric-learning==2.9.0
    python benchmarks/baselines.py --rounds=15

Value and gradient by the features (and by the class vectors, where there are any), on the same
cores, alternating; medians of the rounds, and the median of their ratios. Losses of class sums and
of second moments have no counterpart there; they are timed alone. So is NT-Xent at N = 1,024:
theirs holds a table of all positive times all negative pairs, several arrays of 4 GB there.
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
from pytorch_metric_learning import distances, miners, reducers
from pytorch_metric_learning import losses as pml

from gini_jax import losses
from gini_jax.losses.pairs import cosine

_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Timed rounds of each kind.")
SIZES = (256, 1024)
SMALL = 256  # the largest batch at which their NT-Xent fits
CHANNELS, CLASSES = 512, 100


def theirs() -> dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """By name, their losses."""
    plain = distances.LpDistance(normalize_embeddings=False, p=2)
    hard = miners.BatchHardMiner(distance=plain)
    hardest = pml.TripletMarginLoss(margin=0.2, distance=plain, reducer=reducers.MeanReducer())
    return {
        "supcon": pml.SupConLoss(temperature=0.1),
        "nt_xent": pml.NTXentLoss(temperature=0.1),
        "triplet hard": lambda x, y: hardest(x, y, hard(x, y)),
        "multi_similarity": pml.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
        "proxy_anchor": pml.ProxyAnchorLoss(CLASSES, CHANNELS, margin=0.1, alpha=32),
        "cosface": pml.CosFaceLoss(CLASSES, CHANNELS, margin=0.35, scale=64),
        "arcface": pml.ArcFaceLoss(CLASSES, CHANNELS, margin=28.6, scale=64),
    }


def ours() -> dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]]:
    """By name, our losses of features, class vectors and labels."""
    of_sums = {"num_classes": CLASSES}
    return {
        "supcon": lambda x, w, y: losses.supcon_loss(x, y),
        "nt_xent": lambda x, w, y: losses.nt_xent_loss(*jnp.split(x, 2)),
        "triplet hard": lambda x, w, y: losses.triplet_loss(x, y),
        "multi_similarity": lambda x, w, y: losses.multi_similarity_loss(x, y),
        "proxy_anchor": lambda x, w, y: losses.proxy_anchor_loss(x, y, w),
        "cosface": lambda x, w, y: losses.cosface_loss(cosine(x, w), y),
        "arcface": lambda x, w, y: losses.arcface_loss(cosine(x, w), y),
        "triplet all": lambda x, w, y: losses.triplet_loss(x, y, triplets="all"),
        "triplet semi-hard": lambda x, w, y: losses.triplet_loss(x, y, triplets="semi-hard"),
        "center": lambda x, w, y: losses.center_loss(x, y, **of_sums),
        "fisher": lambda x, w, y: losses.fisher_loss(x, y, **of_sums),
        "island": lambda x, w, y: losses.island_loss(x, y, **of_sums),
        "opl": lambda x, w, y: losses.opl_loss(x, y, **of_sums),
        "rate_reduction": lambda x, w, y: losses.rate_reduction_loss(x, y, **of_sums),
        "monosemantic": lambda x, w, y: losses.monosemantic_loss(x),
        "vcreg": lambda x, w, y: losses.vcreg_loss(x),
        "decorrelation": lambda x, w, y: losses.decorrelation_loss(x),
    }


def seconds_of(call: Callable[[], object]) -> float:
    """Wall time of a call: the mean of three in a row."""
    start = time.perf_counter()
    for _ in range(3):
        call()
    return (time.perf_counter() - start) / 3


def ratio_of(times: dict[str, list[float]]) -> float:
    """Their time over ours, the median over the rounds; the first compiles."""
    pairs = zip(times["theirs"][1:], times["ours"][1:], strict=True)
    return statistics.median(their / own for their, own in pairs)


def torch_call(
    loss: Callable[..., torch.Tensor], x: np.ndarray, labels: np.ndarray
) -> Callable[[], object]:
    """Value and gradient, eager."""
    features, y = torch.tensor(x, requires_grad=True), torch.tensor(labels)

    def call() -> object:
        features.grad = None
        loss(features, y).backward()
        return features.grad

    return call


def jax_call(
    loss: Callable[..., jax.Array], x: np.ndarray, w: np.ndarray, labels: np.ndarray
) -> Callable[[], object]:
    """Value and gradient, compiled."""
    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    batch = jnp.asarray(x), jnp.asarray(w), jnp.asarray(labels)
    return lambda: jax.block_until_ready(step(*batch))


def main(argv: list[str]) -> None:
    """Prints a line for each loss and size."""
    del argv
    rng = np.random.default_rng(0)
    w = rng.normal(size=(CLASSES, CHANNELS)).astype(np.float32)
    cases: dict[str, dict[str, dict[str, float]]] = {}
    for size in SIZES:
        x = rng.normal(size=(size, CHANNELS)).astype(np.float32)
        labels = rng.integers(0, CLASSES, size)
        views = np.concatenate([np.arange(size // 2)] * 2)  # images, two views each
        case = cases[f"N={size}"] = {}
        for name, loss in ours().items():
            calls = {"ours": jax_call(loss, x, w, labels)}
            if name in theirs() and (name != "nt_xent" or size <= SMALL):
                classes = views if name == "nt_xent" else labels
                calls["theirs"] = torch_call(theirs()[name], x, classes)
            times: dict[str, list[float]] = {kind: [] for kind in calls}
            for _ in range(_ROUNDS.value + 1):
                for kind, call in calls.items():
                    call()
                    times[kind].append(seconds_of(call))
            medians = {k: statistics.median(v[1:]) for k, v in times.items()}  # the first compiles
            case[name] = {"milliseconds": round(medians["ours"] * 1e3, 3)}
            line = f"N={size:5} {name:18} {medians['ours'] * 1e3:8.2f} ms"
            if "theirs" in times:
                ratio = ratio_of(times)
                case[name]["theirs_over_ours"] = round(ratio, 3)
                line += f"   pytorch-metric-learning / this {ratio:6.2f}"
            print(line, flush=True)
    if _OUT.value:
        report = {
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "cores": os.cpu_count(),
            "jax": jax.__version__,
            "torch": torch.__version__,
            "rounds": _ROUNDS.value,
            "channels": CHANNELS,
            "classes": CLASSES,
            "cases": cases,
        }
        Path(_OUT.value).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
