"""k-nearest neighbours on fixed features."""

import numpy as np
from jaxtyping import Float, Int

from gini_jax.evals.inputs import Inputs, probe_inputs

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
    from sklearn.neighbors import KNeighborsClassifier

    count = min(neighbours, len(train_labels))
    classifier = KNeighborsClassifier(count, metric="cosine", algorithm="brute")
    classifier.fit(train_features, train_labels)
    return float(classifier.score(test_features, test_labels))
