"""Neural collapse: whether features of a class coincide, and class means form a simplex.

Papyan, Han, Donoho, "Prevalence of neural collapse during the terminal phase of deep learning
training", 2020 (arXiv 2008.08186). All are 0 if the training features have collapsed.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gini_jax.evals.inputs import Inputs, at_most

KEYS = {
    "nc1": "tr(S_W S_B^+) / K of pooled training features: scatter within the classes",
    "nc2": "mean over pairs of classes of |cosine + 1 / (K - 1)|, means less the global one",
    "nc2_norm": "standard deviation over mean of these class means' lengths",
    "nc3": "squared distance of the last layer's weights to the class means, both of length 1",
    "nc4": "share of training examples that the nearest class mean puts in another class",
}
TITLES = {"nc1": ("NC1: scatter within classes", False)}


def evaluate(inputs: Inputs) -> dict[str, Any]:
    """The numbers of `KEYS`; None where there are fewer than two classes, or no linear head."""
    train = at_most(inputs.train)
    found = collapse(train.pooled, train.labels)
    if not found:
        return dict.fromkeys(KEYS)
    centred, means, classes = found.pop("centred"), found.pop("means"), found.pop("classes")
    found["nc3"] = None
    if inputs.head is not None and len(classes) == inputs.head.shape[1]:
        found["nc3"] = self_duality(inputs.head, centred)
    nearest = classes[_nearest(train.pooled.astype(np.float64), means)]
    return found | {"nc4": float((nearest != train.logits.argmax(axis=1)).mean())}


def collapse(features: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]) -> dict[str, Any]:
    """`nc1`, `nc2` and `nc2_norm`, with the class means and these less the global mean, `[K, C]`.

    The global mean is that of the class means, so classes count alike. `S_W` is the covariance
    within the classes, `S_B` that of their means, `S_B^+` its pseudo-inverse.

    Returns:
        Empty, if there are fewer than two classes, or their means coincide.

    Examples:
        >>> corners = np.eye(3).repeat(2, axis=0)  # two equal examples at each corner of a simplex
        >>> found = collapse(corners, np.array([0, 0, 1, 1, 2, 2]))
        >>> [round(found[name], 6) for name in ("nc1", "nc2", "nc2_norm")]
        [0.0, 0.0, 0.0]
    """
    x = features.astype(np.float64)
    classes, index = np.unique(labels, return_inverse=True)
    count = len(classes)
    if count < 2:
        return {}
    means = np.stack([x[index == k].mean(axis=0) for k in range(count)])
    centred = means - means.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    kept = singular > 1e-10 * max(singular[0], 1e-30)
    if not singular[0] > 1e-12 * np.abs(x).max():
        return {}
    inside = (x - means[index]) @ directions[kept].T  # [N, r]
    variances = np.square(inside).mean(axis=0)  # of S_W along S_B's axes
    nc1 = (variances / np.square(singular[kept])).sum()  # S_B = centred' centred / K
    lengths = np.linalg.norm(centred, axis=1)
    unit = centred / np.maximum(lengths, 1e-30)[:, None]
    cosines = (unit @ unit.T)[~np.eye(count, dtype=bool)]
    return {
        "nc1": float(nc1),
        "nc2": float(np.abs(cosines + 1 / (count - 1)).mean()),
        "nc2_norm": float(lengths.std() / lengths.mean()),
        "means": means,
        "centred": centred,
        "classes": classes,
    }


def self_duality(head: Float[np.ndarray, "C K"], centred: Float[np.ndarray, "K C"]) -> float:
    """`|W / |W| - M / |M||^2`, between 0 and 4, of weights and centred class means.

    Examples:
        >>> round(self_duality(np.eye(2), 3 * np.eye(2)), 9)
        0.0
    """
    weights = head.T.astype(np.float64)
    lengths = [max(float(np.linalg.norm(x)), 1e-30) for x in (weights, centred)]
    return float(np.square(weights / lengths[0] - centred / lengths[1]).sum())


def _nearest(x: Float[np.ndarray, "N C"], means: Float[np.ndarray, "K C"]) -> np.ndarray:
    distances = np.square(means).sum(axis=1) - 2 * x @ means.T
    return distances.argmin(axis=1)
