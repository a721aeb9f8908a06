"""Evaluations of a trained network: from its outputs for the splits to numbers and arrays.

A new one is one new file and one line in `EVALS`. The keys of result.json that evaluations fill are
the table's; the others are in `gini_jax.training.result`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gini_jax.evals import accuracy, calibration, clusters, features, knn, probe, selection
from gini_jax.evals.extract import Extractor, SplitOutputs
from gini_jax.losses import gini_impurity

__all__ = ["EVALS", "Extractor", "Inputs", "SplitOutputs", "evaluate", "validation_metrics"]

MOST_EXAMPLES = 10_000  # that probes are fitted or measured on; more are subsampled


class Inputs(NamedTuple):
    """What an evaluation may look at.

    Attributes:
        train: outputs for the training split, at most `MOST_EXAMPLES` of it.
        test: outputs for the test split.
        num_classes: `K`.
        superclass_of: the group of each class; empty where there are none.
    """

    train: SplitOutputs
    test: SplitOutputs
    num_classes: int
    superclass_of: tuple[int, ...] = ()


class Eval(NamedTuple):
    """An entry of the table.

    Attributes:
        function: from `Inputs` to numbers for result.json and arrays for pictures, by name.
        keys: the numbers, each with its meaning.
    """

    function: Callable[[Inputs], Mapping[str, Any]]
    keys: Mapping[str, str]


def _accuracy(inputs: Inputs) -> dict[str, Any]:
    metrics = validation_metrics(inputs.test, inputs.num_classes)
    numbers = {
        f"test_{key}": metrics[key] for key in ("accuracy", "class_accuracy", "top5", "loss")
    }
    if inputs.superclass_of:
        numbers["test_superclass_accuracy"] = accuracy.superclass_accuracy(
            inputs.test.logits, inputs.test.labels, inputs.superclass_of
        )
    predicted = inputs.test.logits.argmax(axis=1)
    confusion = np.zeros((inputs.num_classes, inputs.num_classes), np.int32)
    np.add.at(confusion, (inputs.test.labels, predicted), 1)
    return numbers | {"confusion": confusion}


def _features(inputs: Inputs) -> dict[str, Any]:
    terms = features.feature_terms(inputs.test.layers, inputs.test.labels, inputs.num_classes)
    arrays = {}
    for layer, activations in inputs.test.layers.items():
        profile = features.profile_of(activations, inputs.test.labels, inputs.num_classes)
        arrays[f"profile/{layer}"] = profile
        arrays[f"impurity/{layer}"] = np.asarray(gini_impurity(jnp.asarray(profile)))
    dead = np.mean([(a.max(axis=0) == 0).mean() for a in inputs.test.layers.values()])
    return {
        "feature_gini": terms["gini"],
        "feature_kl": terms["kl"],
        "feature_kl_uniform": terms["kl_uniform"],
        "dead_features": float(dead),
        **arrays,
    }


def _selection(inputs: Inputs) -> dict[str, Any]:
    train = _at_most(inputs.train, 4000)
    profile = features.profile_of(np.abs(train.pooled), train.labels, inputs.num_classes)
    impurity = np.asarray(gini_impurity(jnp.asarray(profile)))
    test = _at_most(inputs.test, 4000)
    curve = selection.selection_curve(
        train.pooled, train.labels, test.pooled, test.labels, impurity
    )
    return {f"selection/{key}": value for key, value in curve._asdict().items()}


def _probe_inputs(inputs: Inputs) -> Any:
    train, test = _at_most(inputs.train), _at_most(inputs.test)
    return train.pooled, train.labels, test.pooled, test.labels


EVALS: dict[str, Eval] = {
    "accuracy": Eval(
        _accuracy,
        {
            "test_accuracy": "share of the test split that is classified correctly",
            "test_class_accuracy": "mean over the classes of the accuracy within each",
            "test_top5": "share whose class is among the five largest logits",
            "test_loss": "cross-entropy, nats",
            "test_superclass_accuracy": "share predicted within its group of classes, if any",
        },
    ),
    "features": Eval(
        _features,
        {
            "feature_gini": "mean Gini impurity over the whole test split",
            "feature_kl": "KL of the features' class distribution from the split's own",
            "feature_kl_uniform": "KL of the features' class distribution from the balanced one",
            "dead_features": "share of the features that never fire on the test split",
        },
    ),
    "calibration": Eval(
        lambda inputs: {
            "test_ece": calibration.expected_calibration_error(
                inputs.test.logits, inputs.test.labels
            )
        },
        {"test_ece": "expected calibration error, 15 bins"},
    ),
    "probe": Eval(
        lambda inputs: {"probe_accuracy": probe.linear_probe(*_probe_inputs(inputs))},
        {"probe_accuracy": "test accuracy of a logistic regression on pooled features"},
    ),
    "knn": Eval(
        lambda inputs: {"knn_accuracy": knn.knn_accuracy(*_probe_inputs(inputs))},
        {"knn_accuracy": "test accuracy of 20 nearest neighbours, cosine"},
    ),
    "clusters": Eval(
        lambda inputs: {
            "nmi": clusters.cluster_nmi(*_probe_inputs(inputs)[2:]),
            "scatter_ratio": clusters.scatter_ratio(*_probe_inputs(inputs)[2:]),
        },
        {
            "nmi": "normalised mutual information of k-means clusters and classes, test split",
            "scatter_ratio": "between- over within-class scatter of pooled test features",
        },
    ),
    "selection": Eval(_selection, {}),
}


def evaluate(inputs: Inputs, names: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Runs evaluations.

    Args:
        inputs: the network's outputs.
        names: which of `EVALS`.

    Returns:
        Numbers for result.json, None where an evaluation did not run; and arrays for pictures.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x, y = rng.normal(size=(20, 4)), np.arange(20) % 4
        >>> outputs = SplitOutputs(x, x, {"pooled": np.abs(x)}, y)
        >>> numbers, arrays = evaluate(Inputs(outputs, outputs, 4), ["accuracy"])
        >>> 0 <= numbers["test_accuracy"] <= 1, numbers["nmi"], arrays["confusion"].sum()
        (True, None, np.int64(20))
    """
    numbers: dict[str, Any] = {key: None for entry in EVALS.values() for key in entry.keys}
    numbers |= {
        "probe_train_examples": min(len(inputs.train.labels), MOST_EXAMPLES),
        "probe_test_examples": min(len(inputs.test.labels), MOST_EXAMPLES),
    }
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        for key, value in EVALS[name].function(inputs).items():
            (numbers if key in numbers else arrays)[key] = value
    return numbers, arrays


def validation_metrics(outputs: SplitOutputs, num_classes: int) -> dict[str, float]:
    """The quick metrics of a split, as of the validation split during training."""
    logits, labels = outputs.logits, outputs.labels
    return {
        "accuracy": accuracy.accuracy(logits, labels),
        "top5": accuracy.accuracy(logits, labels, top=5),
        "class_accuracy": accuracy.class_accuracy(logits, labels),
        "loss": accuracy.cross_entropy(logits, labels),
        **features.feature_terms(outputs.layers, labels, num_classes),
    }


def subsample(size: int, most: int = MOST_EXAMPLES, seed: int = 0) -> np.ndarray:
    """At most `most` of `size` examples, in order, drawn by a fixed seed."""
    if size <= most:
        return np.arange(size)
    return np.sort(np.random.default_rng(seed).permutation(size)[:most])


def _at_most(outputs: SplitOutputs, most: int = MOST_EXAMPLES) -> SplitOutputs:
    rows = subsample(len(outputs.labels), most)
    layers = {layer: values[rows] for layer, values in outputs.layers.items()}
    return SplitOutputs(outputs.logits[rows], outputs.pooled[rows], layers, outputs.labels[rows])
