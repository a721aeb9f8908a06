"""The inputs of an evaluation."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from gini_jax.evals.extract import SplitOutputs

MOST_EXAMPLES = 10_000  # limit for fitting and testing probes; larger splits are subsampled


class Inputs(NamedTuple):
    """A network's outputs for the splits.

    Attributes:
        train: outputs for at most `MOST_EXAMPLES` of the training split.
        test: outputs for the test split.
        num_classes: `K`.
        superclass_of: the group of each class; empty if there are none.
        head: the weights of a linear last layer, `[C, K]`; None if there is none.
    """

    train: SplitOutputs
    test: SplitOutputs
    num_classes: int
    superclass_of: tuple[int, ...] = ()
    head: Float[np.ndarray, "C K"] | None = None


def subsample(size: int, most: int = MOST_EXAMPLES, seed: int = 0) -> Int[np.ndarray, " n"]:
    """Indices of at most `most` of `size` examples, in order, drawn with a fixed seed."""
    if size <= most:
        return np.arange(size)
    return np.sort(np.random.default_rng(seed).permutation(size)[:most])


def at_most(outputs: SplitOutputs, most: int = MOST_EXAMPLES) -> SplitOutputs:
    """A subsample of a split's outputs."""
    rows = subsample(len(outputs.labels), most)
    layers = {layer: values[rows] for layer, values in outputs.layers.items()}
    return SplitOutputs(outputs.logits[rows], outputs.pooled[rows], layers, outputs.labels[rows])


def unit(features: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
    """Rows in float64, divided by their lengths; a row of zeros stays.

    Examples:
        >>> unit(np.array([[3e-200, 4e-200], [0.0, 0.0]])).tolist()
        [[0.6, 0.8], [0.0, 0.0]]
    """
    wide = features.astype(np.float64)
    largest = np.abs(wide).max(axis=1, keepdims=True, initial=0.0)
    wide = wide / np.where(largest > 0, largest, 1.0)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1.0)


def probe_inputs(inputs: Inputs, most: int = MOST_EXAMPLES) -> Any:
    """Pooled features and labels of the training split, and of the test split."""
    train, test = at_most(inputs.train, most), at_most(inputs.test, most)
    return train.pooled, train.labels, test.pooled, test.labels
