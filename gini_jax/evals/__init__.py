"""Evaluations of a trained network: from its outputs for the splits to numbers and arrays.

A new evaluation takes one new file, with `KEYS`, `TITLES` and `evaluate`, and one line in `EVALS`.
Each file lists the keys of result.json that it fills, and those that tables show; the other keys
are in `gini_jax.training.result`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gini_jax.config.registry import Registry
from gini_jax.errors import InputError, first_line
from gini_jax.evals import (
    accuracy,
    calibration,
    clusters,
    collapse,
    features,
    knn,
    probe,
    selection,
    selectivity,
)
from gini_jax.evals.extract import Extractor, SplitOutputs
from gini_jax.evals.inputs import MOST_EXAMPLES, Inputs, subsample

__all__ = [
    "EVALS",
    "TITLES",
    "Extractor",
    "Inputs",
    "SplitOutputs",
    "check_evaluations",
    "chosen",
    "evaluate",
    "evaluation_of",
    "subsample",
    "validation_metrics",
]

# The other keys of result.json; see `gini_jax.training.result`.
RECORDED = (
    "config_name",
    "objective",
    "seed",
    "epochs",
    "steps",
    "batch_size",
    "best_epoch",
    "val_accuracy",
    "train_seconds",
    "images_per_second",
    "num_parameters",
    "device",
    "processor",
    "cpu_threads",
    "jax_version",
    "notes",
    "probe_train_examples",
    "probe_test_examples",
)

# Each has `KEYS`, the numbers for result.json and their meanings, and `evaluate(inputs)`, which
# returns these numbers and arrays for pictures; and `TITLES`, the numbers that tables show, with
# their titles; True: larger is better.
EVALS = Registry(
    "evals",
    {
        "accuracy": accuracy,
        "features": features,
        "calibration": calibration,
        "probe": probe,
        "knn": knn,
        "clusters": clusters,
        "collapse": collapse,
        "selectivity": selectivity,
        "selection": selection,
    },
    lambda part: hasattr(part, "KEYS") and hasattr(part, "evaluate"),
    "a class or a module with KEYS and evaluate",
)
ALWAYS = ("accuracy", "features")
TITLES: dict[str, tuple[str, bool]] = {
    key: row for module in EVALS.values() for key, row in getattr(module, "TITLES", {}).items()
}


def evaluation_of(name: str) -> Any:
    """Finds an evaluation by name: one of `EVALS`, or a plugin.

    A plugin is a class, or a module, with `KEYS`, `evaluate(inputs)` and, optionally, `TITLES`.
    A class is called without arguments.

    Raises:
        InputError: there is no such evaluation, or result.json already has one of its keys.
    """
    found = EVALS.find(name)
    if name in EVALS:
        return found
    if isinstance(found, type):
        try:
            found = found()
        except Exception as error:
            raise InputError(
                f"evals={name!r} cannot be made without arguments ({type(error).__name__}: "
                f"{first_line(error)}); {_CONTRACT}"
            ) from error
    titles = getattr(found, "TITLES", {})
    for what, table in (("KEYS", found.KEYS), ("TITLES", titles)):
        if not isinstance(table, Mapping) or not all(isinstance(key, str) for key in table):
            raise InputError(f"evals={name!r}: {what} must be a dictionary of texts; {_CONTRACT}")
    if wrong := [key for key, row in titles.items() if key not in found.KEYS or len(row) != 2]:
        raise InputError(
            f"evals={name!r}: TITLES names {wrong[0]!r}, but must hold a title and whether larger "
            f"is better for some of KEYS; {_CONTRACT}"
        )
    taken = {key for module in EVALS.values() for key in module.KEYS} | set(RECORDED)
    if clashes := sorted(taken & set(found.KEYS)):
        raise InputError(
            f"evals={name!r} has the key {clashes[0]!r} in KEYS, which result.json already has; "
            f"give it another, such as own_{clashes[0]}"
        )
    return found


def titles_of(names: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """The `TITLES` of plugins; result.json keeps them for later readers."""
    plugins = [evaluation_of(name) for name in names if ":" in name]
    return {key: row for one in plugins for key, row in getattr(one, "TITLES", {}).items()}


def chosen(names: Sequence[str]) -> list[str]:
    """The evaluations that `config.evals` names, and those that always run.

    Examples:
        >>> chosen(["knn"]), len(chosen(["all"])) == len(EVALS)
        (['accuracy', 'features', 'knn'], True)
    """
    ours = [name for name in EVALS if name in ALWAYS or name in names or "all" in names]
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
    sizes = {"probe_train_examples": inputs.train, "probe_test_examples": inputs.test}
    probed = len(names) > len(ALWAYS)
    numbers |= {
        key: min(len(x.labels), MOST_EXAMPLES) if probed else None for key, x in sizes.items()
    }
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        evaluation = evaluation_of(name)
        found = evaluation.evaluate(inputs)
        if ":" in name:
            _check_found(name, evaluation, found, arrays)
        for key, value in found.items():
            if key in evaluation.KEYS:
                numbers[key] = value.item() if isinstance(value, np.generic) else value
            else:
                arrays[key] = value
    return numbers, arrays


def check_evaluations(names: Sequence[str], num_classes: int) -> None:
    """Tries plugin evaluations on random outputs, before the run that ends with them.

    Args:
        names: `config.evals`.
        num_classes: `K`.

    Raises:
        InputError: one fails, or returns anything but the numbers of its `KEYS` and arrays.
    """
    rng, each = np.random.default_rng(0), 4
    labels = np.arange(each * num_classes) % num_classes
    features = np.abs(rng.normal(size=(len(labels), 8))).astype(np.float32)
    logits = rng.normal(size=(len(labels), num_classes)).astype(np.float32)
    outputs = SplitOutputs(logits, features, {"pooled": features}, labels)
    for name in names:
        if ":" not in name:
            continue
        evaluation = evaluation_of(name)
        try:
            found = evaluation.evaluate(Inputs(outputs, outputs, num_classes))
        except (Exception, SystemExit) as error:
            raise InputError(
                f"evals={name!r}: its evaluate fails on random outputs of {len(labels)} images "
                f"({type(error).__name__}: {first_line(error)}); {_CONTRACT}"
            ) from error
        _check_found(name, evaluation, found, {})


_CONTRACT = (
    "evaluate(inputs) returns a dictionary: a number for each key in KEYS, and arrays of numbers "
    "under other keys; docs/extending.md shows one"
)


def _check_found(name: str, evaluation: Any, found: Any, arrays: Mapping[str, Any]) -> None:
    """Refuses values that result.json and arrays.npz cannot store."""
    wrong = ""
    if not isinstance(found, Mapping):
        wrong = f"a {type(found).__name__}"
    else:
        for key, value in found.items():
            is_number = isinstance(value, (int, float, np.integer, np.floating))
            is_array = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
            if key in evaluation.KEYS and not (is_number or value is None):
                wrong = f"a {type(value).__name__} as {key!r}, one of its KEYS"
            elif key not in evaluation.KEYS and (not is_array or key in arrays):
                other = " that another evaluation also has" if key in arrays else ""
                wrong = f"a {type(value).__name__} as {key!r}{other}, which KEYS does not name"
        if lacking := [key for key in evaluation.KEYS if key not in found]:
            wrong = wrong or f"no {lacking[0]!r}, one of its KEYS"
    if wrong:
        raise InputError(f"evals={name!r} returned {wrong}; {_CONTRACT}")


def validation_metrics(outputs: SplitOutputs, num_classes: int) -> dict[str, float]:
    """The quick metrics of a split, used on the validation split during training."""
    return accuracy.metrics(outputs.logits, outputs.labels) | features.feature_terms(
        outputs.layers, outputs.labels, num_classes
    )
