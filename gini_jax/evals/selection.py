"""Are pure features enough? Accuracy with only the n features of the lowest impurity."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gini_jax.evals.features import profile_of
from gini_jax.evals.inputs import Inputs, probe_inputs
from gini_jax.losses import gini_impurity

KEYS = {"selection_share": "smallest share of the features, the purest, with 99 % of the accuracy"}
TITLES = {"selection_share": ("Share of features that is enough, purest first", False)}


def evaluate(inputs: Inputs) -> dict[str, Any]:
    """`selection_share`, and the curve: `selection/sizes, purest` and `random`, `[S]` each."""
    train, train_labels, test, test_labels = probe_inputs(inputs, most=4000)
    profile = profile_of(np.abs(train), train_labels, inputs.num_classes)
    impurity = np.asarray(gini_impurity(jnp.asarray(profile)))
    curve = selection_curve(train, train_labels, test, test_labels, impurity)
    found: dict[str, Any] = {f"selection/{key}": x for key, x in curve._asdict().items()}
    return found | {"selection_share": enough(curve.sizes, curve.purest)}


class SelectionCurve(NamedTuple):
    """Accuracy by the number of features kept.

    Attributes:
        sizes: numbers of features kept.
        purest: accuracy with the features of lowest impurity.
        random: mean accuracy with random subsets of the same size.
    """

    sizes: Int[np.ndarray, " S"]
    purest: Float[np.ndarray, " S"]
    random: Float[np.ndarray, " S"]


def selection_curve(
    train_features: Float[np.ndarray, "N C"],
    train_labels: Int[np.ndarray, " N"],
    test_features: Float[np.ndarray, "M C"],
    test_labels: Int[np.ndarray, " M"],
    impurity: Float[np.ndarray, " C"],
    draws: int = 3,
    seed: int = 0,
) -> SelectionCurve:
    """Test accuracy of a ridge classifier on subsets of the features.

    Args:
        train_features: the examples that the classifiers are fitted on.
        train_labels: their classes.
        test_features: the examples that they are tested on.
        test_labels: their classes.
        impurity: each feature's impurity on the training split, used to choose the purest.
        draws: number of random subsets of each size.
        seed: seed of the draws.

    Returns:
        The curve over sizes 1, 2, 4, ... and all features.

    Examples:
        >>> x, y = np.eye(4)[[0, 1, 2, 3] * 5], np.array([0, 1, 2, 3] * 5)
        >>> selection_curve(x, y, x, y, impurity=np.zeros(4)).purest[-1]
        np.float64(1.0)
    """
    count = train_features.shape[1]
    sizes = sorted({*(2**i for i in range(count.bit_length())), count} - {0})
    accuracy = subset_accuracy(train_features, train_labels, test_features, test_labels)
    rng, order = np.random.default_rng(seed), np.argsort(impurity, kind="stable")
    purest = mean_accuracies(accuracy, [order], sizes)
    random = mean_accuracies(accuracy, [rng.permutation(count) for _ in range(draws)], sizes)
    return SelectionCurve(np.array(sizes), purest, random)


def mean_accuracies(
    accuracy: Callable[[Int[np.ndarray, " n"]], float],
    orders: Sequence[Int[np.ndarray, " C"]],
    sizes: Sequence[int] | Int[np.ndarray, " S"],
) -> Float[np.ndarray, " S"]:
    """Accuracy with the first features of an order, for each size; the mean over the orders."""
    return np.mean([[accuracy(order[:size]) for size in sizes] for order in orders], axis=0)


def subset_accuracy(
    train_features: Float[np.ndarray, "N C"],
    train_labels: Int[np.ndarray, " N"],
    test_features: Float[np.ndarray, "M C"],
    test_labels: Int[np.ndarray, " M"],
) -> Callable[[Int[np.ndarray, " n"]], float]:
    """A function from feature indices to the test accuracy of a ridge classifier on them alone.

    Args:
        train_features: the examples that the classifiers are fitted on.
        train_labels: their classes.
        test_features: the examples that they are tested on.
        test_labels: their classes.

    Examples:
        >>> x, y = np.eye(2)[[0, 1, 0, 1]], np.array([0, 1, 0, 1])
        >>> subset_accuracy(x, y, x, y)(np.array([1]))
        1.0
    """
    from sklearn.linear_model import RidgeClassifier

    scale = train_features.std(axis=0) + 1e-8
    train, test = train_features / scale, test_features / scale

    def accuracy(kept: np.ndarray) -> float:
        classifier = RidgeClassifier(alpha=1.0).fit(train[:, kept], train_labels)
        return float(classifier.score(test[:, kept], test_labels))

    return accuracy


def enough(
    sizes: Int[np.ndarray, " S"], accuracies: Float[np.ndarray, " S"], kept: float = 0.99
) -> float:
    """The smallest share of features from which a curve keeps the part `kept` of its last accuracy.

    Examples:
        >>> enough(np.array([1, 2, 4, 8]), np.array([0.2, 0.9, 0.85, 0.9]))
        1.0
        >>> enough(np.array([1, 2, 4, 8]), np.array([0.2, 0.9, 0.9, 0.9]))
        0.25
    """
    short = np.flatnonzero(accuracies < kept * accuracies[-1])
    first = short[-1] + 1 if len(short) else 0
    return float(sizes[first] / sizes[-1])
