"""Retrieval: finding images of the same class by the pooled features.

Each test image is a query among all others, by cosine similarity. Classes that training did not see
are measured apart, the usual protocol of metric learning. Recall@1 is the share of queries whose
nearest image has their class; R-precision the share of the class among the R nearest, with R the
number of others of the class; MAP@R also counts at which place they come (Musgrave et al., "A
Metric Learning Reality Check", arXiv 2003.08505, section 3.2).
"""

import numpy as np
from jaxtyping import Float, Int

from gini_jax.benches.subject import Subject
from gini_jax.evals.inputs import at_most

KEYS = {
    "recall_at_1": ("Recall@1 on the test split", True),
    "map_at_r": ("MAP@R on the test split", True),
    "r_precision": ("R-precision on the test split", True),
    "held_out_recall_at_1": ("Recall@1 on held-out classes", True),
    "held_out_map_at_r": ("MAP@R on held-out classes", True),
    "held_out_r_precision": ("R-precision on held-out classes", True),
}


def measure(subject: Subject) -> dict[str, float]:
    """The numbers of `KEYS` that apply."""
    test = at_most(subject.test)
    found = retrieval(test.pooled, test.labels)
    if subject.held_out is not None:
        held = at_most(subject.held_out)
        own = retrieval(held.pooled, held.labels)
        found |= {f"held_out_{key}": value for key, value in own.items()}
    return found


def retrieval(
    features: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]
) -> dict[str, float]:
    """Recall@1, R-precision and MAP@R, each image against all others by cosine.

    Images whose class has no other image are no queries.

    Args:
        features: of the images.
        labels: their classes.

    Examples:
        >>> retrieval(np.eye(2)[[0, 0, 1, 1]], np.array([0, 0, 1, 1]))
        {'recall_at_1': 1.0, 'r_precision': 1.0, 'map_at_r': 1.0}
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(norms, 1e-12)
    others = np.bincount(labels)[labels] - 1
    queries = np.flatnonzero(others > 0)
    if not len(queries):
        return dict.fromkeys(("recall_at_1", "r_precision", "map_at_r"), float("nan"))
    most = int(others.max())
    sums = np.zeros(3)
    for chunk in np.array_split(queries, -(-len(queries) // 1000)):
        similar = unit[chunk] @ unit.T
        similar[np.arange(len(chunk)), chunk] = -np.inf
        near = np.argpartition(-similar, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(similar, near, 1), axis=1, kind="stable")
        hits = labels[np.take_along_axis(near, order, 1)] == labels[chunk][:, None]
        number = others[chunk]
        hits &= np.arange(most) < number[:, None]
        precision = hits.cumsum(axis=1) / np.arange(1, most + 1)
        averages = (precision * hits).sum(axis=1) / number
        sums += hits[:, 0].sum(), (hits.sum(axis=1) / number).sum(), averages.sum()
    recall, r_precision, average = (sums / len(queries)).tolist()
    return {"recall_at_1": recall, "r_precision": r_precision, "map_at_r": average}
