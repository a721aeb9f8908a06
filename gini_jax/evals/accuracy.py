"""Accuracy and loss of a split, from its logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gini_jax.evals.inputs import Inputs

KEYS = {
    "test_accuracy": "share of the test split that is classified correctly",
    "test_class_accuracy": "mean over the classes of the accuracy within each",
    "test_top5": "share whose class is among the five largest logits; null for at most 5 classes",
    "test_loss": "cross-entropy, nats",
    "test_superclass_accuracy": "share predicted in the right group of classes; null if no groups",
}
TITLES = {
    "test_accuracy": ("Test accuracy", True),
    "test_class_accuracy": ("Mean accuracy over the classes", True),
    "test_top5": ("Top-5 accuracy", True),
    "test_superclass_accuracy": ("Accuracy over superclasses", True),
    "test_loss": ("Test loss (cross-entropy)", False),
}


def evaluate(inputs: Inputs) -> dict[str, Any]:
    """The numbers of `KEYS`, and the `confusion` matrix, `[K, K]`, true class by predicted."""
    logits, labels = inputs.test.logits, inputs.test.labels
    numbers: dict[str, Any] = {f"test_{key}": x for key, x in metrics(logits, labels).items()}
    if inputs.superclass_of:
        numbers["test_superclass_accuracy"] = superclass_accuracy(
            logits, labels, inputs.superclass_of
        )
    confusion = np.zeros((inputs.num_classes, inputs.num_classes), np.int32)
    np.add.at(confusion, (labels, logits.argmax(axis=1)), 1)
    return numbers | {"confusion": confusion}


def metrics(logits: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"]) -> dict[str, float]:
    """Accuracy, mean accuracy over the classes and loss of a split; top-5 for 6 or more classes."""
    top5 = {"top5": accuracy(logits, labels, top=5)} if logits.shape[1] > 5 else {}
    return {
        "accuracy": accuracy(logits, labels),
        **top5,
        "class_accuracy": class_accuracy(logits, labels),
        "loss": cross_entropy(logits, labels),
    }


def accuracy(
    logits: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"], top: int = 1
) -> float:
    """Share of the examples whose class is among the `top` largest logits.

    All orders of tied logits are equally likely: an example counts as its probability of a hit.

    Examples:
        >>> logits = np.array([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1]])
        >>> accuracy(logits, np.array([1, 2])), accuracy(logits, np.array([0, 1]), top=2)
        (0.5, 0.75)
        >>> accuracy(np.zeros((3, 4)), np.array([0, 1, 2]))
        0.25
    """
    return float(hit_probabilities(logits, labels, top).mean())


def hit_probabilities(
    logits: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"], top: int = 1
) -> Float[np.ndarray, " N"]:
    """Each example's probability that its class is among the `top` largest; see `accuracy`.

    Examples:
        >>> hit_probabilities(np.array([[2.0, 1.0, 1.0]]), np.array([1]), top=2)
        array([0.5])
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    above = (~(logits <= own)).sum(axis=1)  # NaN counts as above everything
    equal = np.maximum((logits == own).sum(axis=1), 1)
    return np.clip((top - above) / equal, 0.0, 1.0)


def class_accuracy(logits: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"]) -> float:
    """Mean of the accuracies within each class; classes without examples are left out.

    Examples:
        >>> logits = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        >>> class_accuracy(logits, np.array([0, 0, 0, 1]))
        0.5
    """
    hits = hit_probabilities(logits, labels)
    return float(np.mean([hits[labels == k].mean() for k in np.unique(labels)]))


def cross_entropy(logits: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"]) -> float:
    """Mean negative log-likelihood, in nats.

    Examples:
        >>> print(f"{cross_entropy(np.zeros((3, 2)), np.array([0, 1, 1])):.4f}")  # log 2
        0.6931
    """
    logits = logits.astype(np.float64)
    if np.isnan(logits).any():
        return float("nan")
    own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return float((np.logaddexp.reduce(logits, axis=1) - own).mean())


def superclass_accuracy(
    logits: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"], superclass_of: Sequence[int]
) -> float:
    """Share of the examples whose predicted class is in the same group as their true class.

    Examples:
        >>> superclass_accuracy(np.eye(3)[[1, 2]], np.array([0, 0]), (0, 0, 1))
        0.5
    """
    group = np.asarray(superclass_of)
    largest = logits == logits.max(axis=1, keepdims=True)
    own = group[None, :] == group[labels][:, None]
    return float(((largest & own).sum(axis=1) / np.maximum(largest.sum(axis=1), 1)).mean())
