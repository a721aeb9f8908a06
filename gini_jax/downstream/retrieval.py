"""Retrieval: finding images of the same class by the pooled features.

Each test image is a query among all others, by cosine similarity. Classes that training did not see
are measured separately, as is usual in metric learning. Recall@1 is the share of queries whose
nearest image has their class. R-precision is the share of the R nearest images that have the
query's class, where R is the number of other images of that class. MAP@R also depends on their
ranks (Musgrave et al., "A Metric Learning Reality Check", arXiv 2003.08505, section 3.2). Equally
similar images count as if they came in random order.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from gini_jax.downstream.subject import Subject
from gini_jax.evals.inputs import at_most, unit

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

    Images whose class has no other image are not queries. Images whose similarities agree to
    `1e-10` are tied: all their orders are equally likely, and the numbers are means over them.

    Args:
        features: of the images.
        labels: their classes.

    Returns:
        The three numbers; NaN if there is no query, or if a feature is not finite.

    Examples:
        >>> retrieval(np.eye(2)[[0, 0, 1, 1]], np.array([0, 0, 1, 1]))
        {'recall_at_1': 1.0, 'r_precision': 1.0, 'map_at_r': 1.0}
        >>> retrieval(np.ones((4, 2)), np.array([0, 0, 1, 1]))["recall_at_1"]  # one of three others
        0.3333333333333333
    """
    rows = unit(features)
    others = np.bincount(labels)[labels] - 1
    queries = np.flatnonzero(others > 0)
    if not len(queries) or not np.isfinite(rows).all():
        return dict.fromkeys(("recall_at_1", "r_precision", "map_at_r"), float("nan"))
    most = int(others.max())
    sums = np.zeros(3)
    for chunk in np.array_split(queries, -(-len(queries) // 200)):
        similar = np.round(rows[chunk] @ rows.T, 10)
        similar[np.arange(len(chunk)), chunk] = -np.inf  # the query itself comes last
        order = np.argsort(-similar, axis=1, kind="stable")[:, :-1]
        hits = labels[order] == labels[chunk][:, None]
        share, precision = _in_any_order(np.take_along_axis(similar, order, axis=1), hits, most)
        number = others[chunk][:, None]
        among = np.arange(most) < number
        sums += (
            share[:, 0].sum(),
            (share * among / number).sum(),
            (precision * among / number).sum(),
        )
    recall, r_precision, average = (sums / len(queries)).tolist()
    return {"recall_at_1": recall, "r_precision": r_precision, "map_at_r": average}


def _in_any_order(
    similar: Float[np.ndarray, "Q N"], hits: Bool[np.ndarray, "Q N"], most: int
) -> tuple[Float[np.ndarray, "Q R"], Float[np.ndarray, "Q R"]]:
    """Means over all orders of tied values, at each of the first `most` ranks.

    Args:
        similar: similarities, in decreasing order in each row.
        hits: whether the image at a rank has the query's class.
        most: `R`.

    Returns:
        The probability of a hit at each rank; and the mean precision up to the rank, which counts
        as 0 where there is no hit.
    """
    size = hits.shape[1]
    first = np.ones_like(hits)
    first[:, 1:] = similar[:, 1:] != similar[:, :-1]
    last = np.ones_like(hits)
    last[:, :-1] = first[:, 1:]
    places = np.arange(size)
    start = np.maximum.accumulate(np.where(first, places, 0), axis=1)[:, :most]
    end = np.minimum.accumulate(np.where(last, places, size)[:, ::-1], axis=1)[:, ::-1][:, :most]
    until = np.concatenate([np.zeros((len(hits), 1)), hits.cumsum(axis=1)], axis=1)
    before = np.take_along_axis(until, start, axis=1)
    own = np.take_along_axis(until, end + 1, axis=1) - before  # hits among the equal ones
    number = end - start + 1
    share = own / number
    # Expected hits among the ties at earlier ranks, given that this rank is a hit.
    among = (places[:most] - start) * (own - 1) / np.maximum(number - 1, 1)
    return share, share * (before + among + 1) / (places[:most] + 1)
