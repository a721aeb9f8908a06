"""Draws training images, raw and as the training step sees them."""

import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gini_jax.analysis.figures import preview
from gini_jax.config.change import default_config
from gini_jax.data import Dataset, Split, load_dataset
from gini_jax.drawing import save
from gini_jax.losses.objective import ObjectiveState
from gini_jax.training.experiment import build_experiment, check_before_data
from gini_jax.training.state import TrainState
from gini_jax.training.step import augmented_batch
from gini_jax.training.workdir import make_workdir

FLAGS: dict[str, Any] = {}
NUM_IMAGES, NUM_DRAWS = 8, 7


def main(config: ConfigDict, workdir: Path) -> Path:
    """Draws preview.png, a contact sheet of raw and augmented training images.

    Each row shows an image of a different class and its augmented versions in seven steps, made by
    the function that the training step itself calls. Mixup and CutMix mix it with other rows.

    Args:
        config: the settings of a run.
        workdir: where preview.png goes.

    Returns:
        Its path.

    Raises:
        InputError: bad input.
    """
    check_before_data(config)
    make_workdir(workdir)
    dataset = load_dataset(config.dataset, only=("train",))
    experiment = build_experiment(config, dataset)
    train = dataset.splits["train"]
    chosen = _of_different_classes(train.labels, config.seed)
    batch = Split(train.images[chosen], train.labels[chosen])
    key = jax.random.key_data(jax.random.key(config.seed))

    @jax.jit
    def seen(step: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = TrainState(step, None, None, None, key, ObjectiveState({}, None))
        augmented = augmented_batch(state, batch, experiment)
        return augmented.images, augmented.labels

    draws = [jax.device_get(seen(jnp.array(step))) for step in range(NUM_DRAWS)]
    images, labels = map(np.stack, zip(*draws, strict=True))
    rows = [
        {
            "name": _name(dataset, int(batch.labels[i])),
            "raw": batch.images[i],
            "draws": images[:, i],
            "labels": [_mixture(dataset, row, config.loss.label_smoothing) for row in labels[:, i]],
        }
        for i in range(len(chosen))
    ]
    path = workdir / "preview.png"
    save(path, preview, rows, _title(config))
    print(f"{len(rows)} training images of {config.dataset.name}, raw and augmented: {path}")
    return path


def _of_different_classes(labels: np.ndarray, seed: int) -> np.ndarray:
    """Examples in random order, each of a different class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    return order[np.sort(first)[:NUM_IMAGES]]


def _name(dataset: Dataset, label: int) -> str:
    if label < 0:
        return "(no label)"
    name = dataset.class_names[label]
    if dataset.superclass_of:
        group = dataset.superclass_names[dataset.superclass_of[label]]
        name += "\n" + textwrap.fill(f"({group.replace('_', ' ')})", 20)
    return name


def _mixture(dataset: Dataset, row: np.ndarray, smoothing: float) -> str:
    """The classes that a label row mixes, ignoring label smoothing; "" if there is only one."""
    top = [k for k in np.argsort(-row)[:2] if row[k] > smoothing / len(row) + 1e-3]
    if len(top) == 1:
        return ""
    return "\n".join(f"{row[k]:.0%} {dataset.class_names[k]}" for k in top)


def _title(config: ConfigDict) -> str:
    """The config's name and the augmentations that are on."""
    off = default_config().augment
    on = [f"{key}={value}" for key, value in config.augment.items() if value != off[key]]
    return f"{config.name}: " + (", ".join(on) or "no augmentation")
