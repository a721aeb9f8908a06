"""Tests a checkpoint: the numbers in result.json, and the arrays for the pictures."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gini_jax.data.source import Dataset, LazySubset, Split
from gini_jax.devices import num_devices
from gini_jax.errors import RunError
from gini_jax.evals import Extractor, Inputs, SplitOutputs, chosen, evaluate, subsample, titles_of
from gini_jax.models.layers import linear_head
from gini_jax.training.checks import notes_on
from gini_jax.training.frozen import as_seen
from gini_jax.training.progress import Progress, num_parameters
from gini_jax.training.state import Experiment


def measure(
    experiment: Experiment,
    dataset: Dataset,
    variables: Any,
    initial: Any = None,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Evaluates a network on the test split.

    Args:
        experiment: the fixed parts of the run.
        dataset: the data, with its training and test splits.
        variables: the network's variables.
        initial: the variables before training, to measure their features' impurity too; or None.
        devices: to compute on; all by default.

    Returns:
        The numbers that `gini_jax.evals.EVALS` lists, and arrays for pictures.

    Raises:
        RunError: a logit is not finite.
    """
    config = experiment.config
    extract = Extractor(experiment.model, config, dataset.image_size, devices)
    seen = as_seen(experiment, dataset, variables, devices).splits
    train, test = seen["train"], seen["test"]
    names = chosen(config.evals)
    labelled = np.flatnonzero(train.labels >= 0)
    rows = labelled[subsample(len(labelled))] if len(names) > 2 else labelled[:1]
    inputs = Inputs(
        extract(variables, Split(LazySubset(train.images, rows), train.labels[rows])),
        extract(variables, test),
        dataset.num_classes,
        dataset.superclass_of,
        linear_head(variables),
    )
    if not (good := np.isfinite(inputs.test.logits).all(axis=1)).all():
        raise RunError(
            f"the network's logits are not finite for {(~good).sum()} of {len(good)} test images, "
            "so it cannot be tested; train again with a lower learning rate, in another --workdir"
        )
    numbers, arrays = evaluate(inputs, names)
    arrays |= _for_pictures(inputs.test, dataset.splits["test"], arrays)
    if initial is not None:
        before = Inputs(inputs.train, extract(initial, test), dataset.num_classes)
        _, untrained = evaluate(before, ["features"])
        arrays |= {f"untrained_{key}": value for key, value in untrained.items()}
    return numbers, arrays


def _for_pictures(
    outputs: SplitOutputs, test: Split, arrays: Mapping[str, np.ndarray], most: int = 2000
) -> dict[str, np.ndarray]:
    """Each test image's class and prediction, some pooled features, and images of some features.

    For the first layer: the eight features of lowest and the eight of highest impurity, and the
    eight test images that activate each of them most: `fired_features [16]` and
    `fired_images [16, 8, h, w, 3]`.
    """
    rows = subsample(len(outputs.labels), most)
    layer, activations = next(iter(outputs.layers.items()))
    order = np.argsort(arrays[f"impurity/{layer}"], kind="stable")
    alive = order[activations[:, order].max(axis=0) > 0]
    shown = alive if len(alive) else order  # if all are dead, any of them
    features = np.concatenate([shown[:8], shown[-8:]])
    top = np.argsort(-activations[:, features], axis=0, kind="stable")[:8].T
    shrink = max(1, test.images.shape[1] // 64)
    return {
        "test_labels": outputs.labels,
        "test_predicted": outputs.logits.argmax(axis=1).astype(np.int32),
        "pooled": outputs.pooled[rows],
        "pooled_labels": outputs.labels[rows],
        "fired_features": features,
        "fired_images": np.stack([test.images[t][:, ::shrink, ::shrink] for t in top]),
    }


def processor() -> str:
    """The model of this machine's processor, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):  # another system
        return platform.processor() or platform.machine()


def threads() -> int:
    """How many of the machine's processors this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # of Linux
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def training_record(
    experiment: Experiment,
    progress: Progress,
    params: Any,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """What result.json records about the training: config, epochs, time, device."""
    config = experiment.config
    titles = titles_of(config.evals)
    return ({"titles": titles} if titles else {}) | {
        "config_name": config.name,
        "objective": config.objective,
        "seed": config.seed,
        "epochs": progress.epochs,
        "steps": progress.epochs * experiment.steps_per_epoch,
        "batch_size": config.batch_size,
        "best_epoch": progress.best_epoch,
        "val_accuracy": progress.val_accuracy if progress.val_accuracy >= 0 else None,
        "train_seconds": progress.train_seconds,
        "images_per_second": progress.images / max(progress.train_seconds, 1e-9),
        "num_parameters": num_parameters(params),
        "device": f"{num_devices(devices)} x {jax.devices()[0].device_kind}",
        "processor": processor(),
        "cpu_threads": threads(),
        "jax_version": jax.__version__,
        "notes": notes_on(config),
    }
