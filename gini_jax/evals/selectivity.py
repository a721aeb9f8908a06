"""What single features tell of the classes, and what they share with each other."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gini_jax.evals.inputs import Inputs, at_most

KEYS = {
    "selectivity": "(largest class mean - mean of the others) / their sum, mean over test features",
    "top_purity": "largest class share of the ten test images that fire a feature most, mean",
    "effective_rank": "exponential of the entropy of the pooled test features' singular values",
    "feature_correlation": "mean absolute correlation of two pooled test features",
}
TITLES = {
    "selectivity": ("Class selectivity", True),
    "top_purity": ("Purity of the top images", True),
    "effective_rank": ("Effective rank", True),
    "feature_correlation": ("Correlation of features", False),
}
TOP = 10


def evaluate(inputs: Inputs) -> dict[str, Any]:
    """The numbers of `KEYS`; None where no feature fires or varies."""
    test = at_most(inputs.test)
    activations = np.concatenate(list(test.layers.values()), axis=1)
    return {
        "selectivity": class_selectivity(activations, test.labels),
        "top_purity": top_purity(activations, test.labels),
        "effective_rank": effective_rank(test.pooled),
        "feature_correlation": feature_correlation(test.pooled),
    }


def class_selectivity(
    activations: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]
) -> float | None:
    """The class selectivity index of features that are not negative, mean over those that fire.

    Morcos, Barrett, Rabinowitz, Botvinick, "On the importance of single directions for
    generalization", 2018 (arXiv 1803.06959), section 3.

    Returns:
        Between 0, equal class means, and 1, one class; None if no feature fires.

    Examples:
        >>> one_class, all_alike, labels = np.eye(3), np.ones((3, 2)), np.arange(3)
        >>> class_selectivity(one_class, labels), class_selectivity(all_alike, labels)
        (1.0, 0.0)
    """
    means = _class_means(activations, labels)
    if len(means) < 2:
        return None
    largest = means.max(axis=0)
    others = (means.sum(axis=0) - largest) / (len(means) - 1)
    fires = largest > 0
    if not fires.any():
        return None
    largest, others = largest[fires], others[fires]
    return float(((largest - others) / (largest + others)).mean())


def top_purity(
    activations: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]
) -> float | None:
    """The largest class share of the ten images that fire a feature most, mean over the features.

    Features that never fire are left out. Equal activations count in the order of the images.

    Examples:
        >>> top_purity(np.eye(2).repeat(10, axis=0), np.arange(2).repeat(10))
        1.0
    """
    fires = activations.max(axis=0, initial=0.0) > 0
    if not fires.any():
        return None
    top = np.argsort(-activations[:, fires], axis=0, kind="stable")[:TOP]  # [10, C]
    _, index = np.unique(labels, return_inverse=True)
    counts = (index[top][None] == np.arange(index.max() + 1)[:, None, None]).sum(axis=1)
    return float((counts.max(axis=0) / len(top)).mean())


def effective_rank(features: Float[np.ndarray, "N C"]) -> float | None:
    """`exp(-sum_i p_i log p_i)`, where `p` are the singular values, divided by their sum.

    Roy, Vetterli, "The effective rank: a measure of effective dimensionality", 2007.

    Returns:
        Between 1 and `min(N, C)`; None if all features are 0.

    Examples:
        >>> round(effective_rank(np.eye(4)), 6), round(effective_rank(np.ones((4, 3))), 6)
        (4.0, 1.0)
    """
    x = features.astype(np.float64)
    product = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(product), 0.0))
    if not singular.max() > 0:
        return None
    singular[singular < 1e-7 * singular.max()] = 0.0  # rounding of the product
    share = singular[singular > 0] / singular.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def feature_correlation(features: Float[np.ndarray, "N C"]) -> float | None:
    """The mean absolute correlation of two features, over all pairs of features that vary.

    Examples:
        >>> x = np.array([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0], [1.0, 0.0, 1.0], [-1.0, 0.0, -1.0]])
        >>> round(feature_correlation(x), 6)  # of three pairs, one is equal
        0.333333
    """
    x = features.astype(np.float64)
    centred = x - x.mean(axis=0)
    lengths = np.linalg.norm(centred, axis=0)
    varies = lengths > 1e-9 * np.abs(x).max(initial=0.0) * np.sqrt(len(x))
    count = int(varies.sum())
    if count < 2:
        return None
    unit = centred[:, varies] / lengths[varies]
    total = np.abs(unit.T @ unit).sum() - count
    return float(total / (count * (count - 1)))


def _class_means(x: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]) -> np.ndarray:
    classes = np.unique(labels)
    return np.stack([x[labels == k].astype(np.float64).mean(axis=0) for k in classes])
