"""k-nearest neighbours on fixed features."""

import numpy as np
from jaxtyping import Float, Int

from gini_jax.evals.accuracy import hit_probabilities
from gini_jax.evals.inputs import Inputs, probe_inputs, unit

KEYS = {"knn_accuracy": "test accuracy of the 20 nearest neighbours by cosine, pooled features"}
TITLES = {"knn_accuracy": ("20 nearest neighbours", True)}


def evaluate(inputs: Inputs) -> dict[str, float]:
    """The number of `KEYS`."""
    return {"knn_accuracy": knn_accuracy(*probe_inputs(inputs))}


def knn_accuracy(
    train_features: Float[np.ndarray, "N C"],
    train_labels: Int[np.ndarray, " N"],
    test_features: Float[np.ndarray, "M C"],
    test_labels: Int[np.ndarray, " M"],
    neighbours: int = 20,
) -> float:
    """Test accuracy of a vote among the nearest training examples, by cosine similarity.

    Examples exactly as near as the last neighbour share the remaining votes. Classes with equally
    many votes are equally likely to win. So the order of examples or classes does not matter.

    Args:
        train_features: the examples among which neighbours are sought.
        train_labels: their classes.
        test_features: the examples to classify.
        test_labels: their classes.
        neighbours: how many vote; if there are fewer training examples, all of them vote.

    Examples:
        >>> x, y = np.eye(2)[[0, 1] * 30], np.array([0, 1] * 30)
        >>> knn_accuracy(x, y, x, y)
        1.0
    """
    train, test = unit(train_features), unit(test_features)
    count = min(neighbours, len(train_labels))
    votes_of = np.eye(int(max(train_labels.max(), test_labels.max())) + 1)[train_labels]
    hits = 0.0
    for rows in np.array_split(np.arange(len(test)), -(-len(test) // 500)):
        similar = np.round(test[rows] @ train.T, 10)
        last = -np.partition(-similar, count - 1, axis=1)[:, count - 1, None]
        nearer, equal = similar > last, similar == last
        left = count - nearer.sum(axis=1, keepdims=True)
        votes = nearer @ votes_of + left * (equal @ votes_of) / equal.sum(axis=1, keepdims=True)
        hits += hit_probabilities(np.round(votes, 9), test_labels[rows]).sum()
    return float(hits / len(test))
