"""Calibration: how far a network's confidence is from its accuracy."""

import numpy as np
from jaxtyping import Float, Int

from gini_jax.evals.inputs import Inputs

KEYS = {"test_ece": "expected calibration error, 15 bins"}
TITLES = {"test_ece": ("Expected calibration error", False)}


def evaluate(inputs: Inputs) -> dict[str, float]:
    """The number of `KEYS`."""
    return {"test_ece": expected_calibration_error(inputs.test.logits, inputs.test.labels)}


def expected_calibration_error(
    logits: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"], bins: int = 15
) -> float:
    """Expected calibration error of the predicted class, with bins of equal width.

    `sum over bins b of (n_b / N) |accuracy_b - confidence_b|`; bin `b` holds confidences in
    `((b-1)/B, b/B]`.

    References:
        Guo et al., "On calibration of modern neural networks", arXiv 1706.04599, equation 3.

    Examples:
        >>> logits = np.log(np.array([[0.75, 0.25]] * 4))
        >>> print(f"{expected_calibration_error(logits, np.array([0, 0, 0, 1])):.4f}")
        0.0000
    """
    from scipy.special import softmax  # here, because the import takes as long as flax's

    probabilities = softmax(logits.astype(np.float64), axis=1)
    confidence = probabilities.max(axis=1)
    hit = probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    hits = np.bincount(index, hit, minlength=bins)
    confidences = np.bincount(index, confidence, minlength=bins)
    gap = np.abs(hits - confidences)[count > 0]
    return float(gap.sum() / len(labels))
