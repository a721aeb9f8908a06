"""Linear probe: how well a newly fitted linear classifier does on fixed features."""

import warnings

import numpy as np
from jaxtyping import Float, Int

from gini_jax.evals.inputs import Inputs, probe_inputs

KEYS = {"probe_accuracy": "test accuracy of a logistic regression on pooled features"}
TITLES = {"probe_accuracy": ("Linear probe", True)}


def evaluate(inputs: Inputs) -> dict[str, float]:
    """The number of `KEYS`."""
    return {"probe_accuracy": linear_probe(*probe_inputs(inputs))}


def linear_probe(
    train_features: Float[np.ndarray, "N C"],
    train_labels: Int[np.ndarray, " N"],
    test_features: Float[np.ndarray, "M C"],
    test_labels: Int[np.ndarray, " M"],
) -> float:
    """Test accuracy of scikit-learn's logistic regression on standardised features.

    Examples:
        >>> x, y = np.eye(2)[[0, 1] * 10], np.array([0, 1] * 10)
        >>> linear_probe(x, y, x, y)
        1.0
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, C=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train_features.astype(np.float64), train_labels)
    return float(probe.score(test_features.astype(np.float64), test_labels))
