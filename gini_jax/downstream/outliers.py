"""Outliers: detecting images that belong to none of the classes.

AUROC between the test split and other images, by the largest probability (Hendrycks and Gimpel,
arXiv 1610.02136) and by the length of the pooled features: the probability that a test image has a
larger value than one of the others. The others are the test split of `--outliers=DATASET` or
`--outliers=folder:PATH`. Without the flag they are the held-out classes, or if there are none, the
test images with their pixels in random order.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from gini_jax.data import load_dataset
from gini_jax.data.source import Split
from gini_jax.downstream.subject import Subject
from gini_jax.evals import SplitOutputs, subsample

MOST = 10_000
KEYS = {
    "outlier_auroc_probability": ("AUROC against outliers, largest probability", True),
    "outlier_auroc_norm": ("AUROC against outliers, length of the features", True),
}


def measure(subject: Subject) -> dict[str, Any]:
    """The numbers of `KEYS`, and what the outliers were."""
    others, name = _outliers(subject)
    known, unknown = (scores(outputs) for outputs in (subject.test, others))
    return {
        "outliers": name,
        "outlier_auroc_probability": auroc(known[0], unknown[0]),
        "outlier_auroc_norm": auroc(known[1], unknown[1]),
    }


def scores(outputs: SplitOutputs) -> tuple[np.ndarray, np.ndarray]:
    """The largest probability of each image, and the length of its features."""
    probabilities = np.asarray(jax.nn.softmax(outputs.logits))
    return probabilities.max(axis=1), np.linalg.norm(outputs.pooled, axis=1)


def auroc(known: Float[np.ndarray, " N"], unknown: Float[np.ndarray, " M"]) -> float:
    """The probability that a value of the first is larger than one of the second; ties count half.

    Examples:
        >>> auroc(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
        0.875
    """
    from sklearn.metrics import roc_auc_score

    is_known = np.r_[np.ones(len(known)), np.zeros(len(unknown))]
    return float(roc_auc_score(is_known, np.r_[known, unknown]))


def _outliers(subject: Subject) -> tuple[SplitOutputs, str]:
    if subject.outliers:
        config = subject.config.dataset.copy_and_resolve_references()
        size = config.image_size or subject.trained.image_size
        name, _, folder = subject.outliers.partition("folder:")
        if folder:
            name, config.data_dir = "folder", folder
        config.update(name=name, image_size=size, num_classes=0, test_split="test")
        config.update(val_size=0, train_size=0, labelled=0, label_noise=0.0, test_size=0)
        config.update(held_out_classes=0, superclasses=False)
        split = load_dataset(config, only=("test",)).splits["test"]
        rows = subsample(len(split.labels), MOST)
        chosen = Split(split.images[rows], split.labels[rows])
        return subject.outputs(chosen), subject.outliers
    if subject.held_out is not None:
        return subject.held_out, "held-out classes"
    split = subject.dataset.splits["test"]
    rows = subsample(len(split.labels), MOST)
    return subject.outputs(Split(shuffled_pixels(split.images[rows]), split.labels[rows])), (
        "test images with shuffled pixels"
    )


def shuffled_pixels(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Shuffles each image's pixels, in a different order for each image."""
    flat = images.reshape(len(images), -1, images.shape[-1])
    order = np.random.default_rng(seed).random(flat.shape[:2]).argsort(axis=1)
    return np.take_along_axis(flat, order[..., None], axis=1).reshape(images.shape)
