"""How near a batch's Gini and KL come to the whole training set's, with running class sums or not.

    python benchmarks/running_sums.py --workdir=runs/r18 --data_dir=DIR

Takes the features of a finished run's best checkpoint for all training images, draws batches, and
compares the batch's mean Gini impurity and KL with those of the whole set. The network stands
still, so the history of the running sums is not outdated: their best case. Writes
results/running_sums.json and docs/running_sums.png.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags

import gini_jax
from gini_jax.data import load_dataset
from gini_jax.losses import RunningSums, class_sums, gini_loss, kl_loss

_WORKDIR = flags.DEFINE_string("workdir", "runs/r18", "A finished run.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Where TFDS keeps the data.")
_LAYER = flags.DEFINE_string("layer", "stage4", "The layer to look at.")

ROOT = Path(__file__).resolve().parent.parent
BATCHES, DECAYS = (32, 64, 128, 256, 512), (0.0, 0.9, 0.99)


def features_of(trained: Any, images: np.ndarray, layer: str) -> np.ndarray:
    """Spatial means of a layer's activations, `[N, C]`."""
    parts = []
    for part in np.array_split(images, 92):
        x = np.abs(trained.features(part)[layer])
        parts.append(x.mean(axis=tuple(range(1, x.ndim - 1))))
    return np.concatenate(parts)


def errors(z: np.ndarray, labels: np.ndarray, num_classes: int, batch: int, decay: float):
    """Absolute errors of Gini and KL over 300 batches, after as many to warm up."""
    whole = class_sums(jnp.asarray(z), jnp.asarray(labels), num_classes=num_classes)
    target = np.array([gini_loss(whole), kl_loss(whole)])

    @jax.jit
    def step(state, z, labels):
        sums = class_sums(z, labels, num_classes=num_classes)
        sums, state = state.update(sums, decay)
        return state, jnp.array([gini_loss(sums), kl_loss(sums)])

    rng, state, seen = np.random.default_rng(0), RunningSums.zeros_like(whole), []
    for _ in range(600):
        index = rng.choice(len(labels), batch, replace=False)
        state, values = step(state, z[index], labels[index])
        seen.append(np.asarray(values))
    found = np.abs(np.array(seen[300:]) - target)
    return target, found.mean(axis=0), found.std(axis=0)


def main(argv: list[str]) -> None:
    """Measures, writes the figures, draws them."""
    del argv
    workdir = Path(_WORKDIR.value)
    trained = gini_jax.load(workdir)
    config = trained.config
    config.dataset.data_dir = _DATA_DIR.value
    dataset = load_dataset(config.dataset)
    train = dataset.splits["train"]
    z, labels = features_of(trained, train.images, _LAYER.value), np.asarray(train.labels)
    rows = []
    for decay in DECAYS:
        for batch in BATCHES:
            target, mean, spread = errors(z, labels, dataset.num_classes, batch, decay)
            row = {"batch": batch, "decay": decay}
            for i, name in enumerate(("gini", "kl")):
                row |= {f"{name}_error": float(mean[i]), f"{name}_error_std": float(spread[i])}
            rows.append(row)
            print(json.dumps(row), flush=True)
    result = json.loads((workdir / "result.json").read_text())
    out = {
        "config": config.to_dict() | {"dataset": config.dataset.to_dict() | {"data_dir": ""}},
        "layer": _LAYER.value,
        "test_accuracy": result["test_accuracy"],
        "device": result["device"],
        "batches_of_each": 300,
        "whole_set": {"gini": float(target[0]), "kl": float(target[1])},
        "errors": rows,
    }
    (ROOT / "results" / "running_sums.json").write_text(json.dumps(out, indent=2) + "\n")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name, title in zip(axes, ("gini", "kl"), ("Gini impurity", "KL"), strict=True):
        for decay in DECAYS:
            line = [row[f"{name}_error"] for row in rows if row["decay"] == decay]
            label = f"running sums, decay {decay}" if decay else "the batch alone"
            axis.loglog(BATCHES, line, marker="o", label=label)
        axis.set_xticks(BATCHES, map(str, BATCHES))
        axis.minorticks_off()
        axis.set_title(f"{title}; whole training set: {out['whole_set'][name]:.3f}")
        axis.set_xlabel("batch size")
        axis.set_ylabel("mean absolute error")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(ROOT / "docs" / "running_sums.png", dpi=110)


if __name__ == "__main__":
    app.run(main)
