"""Whether the classes form clusters: k-means, and scatter within and between the classes."""

import numpy as np
from jaxtyping import Float, Int

from gini_jax.evals.inputs import Inputs, probe_inputs

KEYS = {
    "nmi": "normalised mutual information of k-means clusters and classes, pooled test features",
    "scatter_ratio": "between- over within-class scatter of pooled test features",
}
TITLES = {
    "nmi": ("NMI of k-means clusters", True),
    "scatter_ratio": ("Between- over within-class scatter", True),
}


def evaluate(inputs: Inputs) -> dict[str, float]:
    """The numbers of `KEYS`."""
    _, _, features, labels = probe_inputs(inputs)
    return {
        "nmi": cluster_nmi(features, labels),
        "scatter_ratio": scatter_ratio(features, labels),
    }


def cluster_nmi(
    features: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"], seed: int = 0
) -> float:
    """Normalised mutual information between the classes and as many k-means clusters.

    Examples:
        >>> cluster_nmi(np.eye(3)[[0, 1, 2] * 5], np.array([0, 1, 2] * 5))
        1.0
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    clusters = KMeans(len(np.unique(labels)), n_init=3, random_state=seed).fit_predict(features)
    return float(normalized_mutual_info_score(labels, clusters))


def scatter_ratio(features: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]) -> float:
    """Between-class over within-class scatter: `tr(S_b) / tr(S_w)`.

    `S_w = sum_n (x_n - mean of its class)^2`, `S_b = sum_n (mean of its class - overall mean)^2`.

    Returns:
        At least 0; infinite if the examples within each class coincide, 0 if all examples coincide.

    Examples:
        >>> scatter_ratio(np.array([[0.0], [2.0], [4.0], [6.0]]), np.array([0, 0, 1, 1]))
        4.0
    """
    x = features.astype(np.float64)
    classes, index = np.unique(labels, return_inverse=True)
    means = np.stack([x[index == k].mean(axis=0) for k in range(len(classes))])
    within = ((x - means[index]) ** 2).sum()
    between = ((means[index] - x.mean(axis=0)) ** 2).sum()
    if not between:
        return 0.0
    return float(between / within) if within else float("inf")
