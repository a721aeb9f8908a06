"""Evaluations of a trained network: from its outputs for the splits to numbers and arrays.

A new evaluation takes one new file, with `KEYS`, `TITLES` and `evaluate`, and one line in `NAMES`.
Each file lists the keys of result.json that it fills, and those that tables show; the other keys
are in `gini_jax.training.result`.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gini_jax.evals import accuracy, features
from gini_jax.evals.extract import Extractor, SplitOutputs
from gini_jax.evals.inputs import MOST_EXAMPLES, Inputs, subsample
from gini_jax.parts import find

__all__ = [
    "EVALS",
    "TITLES",
    "Extractor",
    "Inputs",
    "SplitOutputs",
    "chosen",
    "evaluate",
    "evaluation_of",
    "subsample",
    "validation_metrics",
]

NAMES = (
    "accuracy",
    "features",
    "calibration",
    "probe",
    "knn",
    "clusters",
    "selection",
)
ALWAYS = ("accuracy", "features")

# name -> module. Each has `KEYS`, the numbers for result.json and their meanings, and
# `evaluate(inputs)`, which returns these numbers and arrays for pictures; and `TITLES`, the numbers
# that tables show, with their titles; True: larger is better.
EVALS: dict[str, Any] = {name: importlib.import_module(f"gini_jax.evals.{name}") for name in NAMES}
TITLES: dict[str, tuple[str, bool]] = {
    key: row for module in EVALS.values() for key, row in getattr(module, "TITLES", {}).items()
}


def evaluation_of(name: str) -> Any:
    """An evaluation: of `EVALS`, or `module:Name`, one of one's own.

    That is a class, or a module, with `KEYS`, `evaluate(inputs)` and, if it likes, `TITLES`.

    Raises:
        InputError: there is no such evaluation.
    """
    what = "a class or a module with KEYS and evaluate"
    found = find(
        "evals", name, EVALS, lambda x: hasattr(x, "KEYS") and hasattr(x, "evaluate"), what
    )
    TITLES.update(getattr(found, "TITLES", {}))  # so that tables show its numbers
    return found


def chosen(names: Sequence[str]) -> list[str]:
    """The evaluations that `config.evals` names, and those that always run.

    Examples:
        >>> chosen(["knn"]), len(chosen(["all"])) == len(EVALS)
        (['accuracy', 'features', 'knn'], True)
    """
    ours = [name for name in NAMES if name in ALWAYS or name in names or "all" in names]
    return ours + [name for name in names if ":" in name]


def evaluate(inputs: Inputs, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Runs evaluations.

    Args:
        inputs: the network's outputs.
        names: which of `EVALS` to run.

    Returns:
        Numbers for result.json, None where an evaluation did not run; and arrays for pictures.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> x, y = rng.normal(size=(20, 4)), np.arange(20) % 4
        >>> outputs = SplitOutputs(x, x, {"pooled": np.abs(x)}, y)
        >>> numbers, arrays = evaluate(Inputs(outputs, outputs, 4), ["accuracy"])
        >>> 0 <= numbers["test_accuracy"] <= 1, numbers["nmi"], arrays["confusion"].sum()
        (True, None, np.int64(20))
    """
    own = [evaluation_of(name) for name in names if ":" in name]
    modules = [*EVALS.values(), *own]
    numbers: dict[str, Any] = {key: None for module in modules for key in module.KEYS}
    numbers |= {
        "probe_train_examples": min(len(inputs.train.labels), MOST_EXAMPLES),
        "probe_test_examples": min(len(inputs.test.labels), MOST_EXAMPLES),
    }
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        for key, value in evaluation_of(name).evaluate(inputs).items():
            (numbers if key in numbers else arrays)[key] = value
    return numbers, arrays


def validation_metrics(outputs: SplitOutputs, num_classes: int) -> dict[str, float]:
    """The quick metrics of a split, used on the validation split during training."""
    return accuracy.metrics(outputs.logits, outputs.labels) | features.feature_terms(
        outputs.layers, outputs.labels, num_classes
    )
