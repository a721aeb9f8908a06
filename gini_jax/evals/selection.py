"""Are pure features enough? Accuracy with only the n features of the lowest impurity."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gini_jax.evals.features import profile_of
from gini_jax.evals.inputs import Inputs, probe_inputs
from gini_jax.losses import gini_impurity

KEYS: dict[str, str] = {}


def evaluate(inputs: Inputs) -> dict[str, Float[np.ndarray, " S"]]:
    """The curve as `selection/sizes`, `selection/purest` and `selection/random`, `[S]` each."""
    train, train_labels, test, test_labels = probe_inputs(inputs, most=4000)
    profile = profile_of(np.abs(train), train_labels, inputs.num_classes)
    impurity = np.asarray(gini_impurity(jnp.asarray(profile)))
    curve = selection_curve(train, train_labels, test, test_labels, impurity)
    return {f"selection/{key}": value for key, value in curve._asdict().items()}


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
    from sklearn.linear_model import RidgeClassifier

    count = train_features.shape[1]
    sizes = sorted({*(2**i for i in range(count.bit_length())), count} - {0})
    scale = train_features.std(axis=0) + 1e-8
    train, test = train_features / scale, test_features / scale
    rng, order = np.random.default_rng(seed), np.argsort(impurity, kind="stable")

    def accuracy(kept: np.ndarray) -> float:
        classifier = RidgeClassifier(alpha=1.0).fit(train[:, kept], train_labels)
        return float(classifier.score(test[:, kept], test_labels))

    purest = [accuracy(order[:size]) for size in sizes]
    random = [
        np.mean([accuracy(rng.permutation(count)[:size]) for _ in range(draws)])
        if size < count
        else purest[-1]
        for size in sizes
    ]
    return SelectionCurve(np.array(sizes), np.array(purest), np.array(random))
