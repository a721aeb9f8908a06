"""Pruning: how few of the pooled features are enough.

A ridge classifier is refitted on the n features that are purest on the training split, on the n
most important for the trained head (the standard deviation of a feature times the length of its
weights) and on n random ones, the mean of three draws. The number is the smallest share of the
features that keeps 99 % of the accuracy with all of them. At most 4,000 training and 4,000 test
images.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from gini_jax.downstream.subject import Subject
from gini_jax.drawing import COLOURS, by_features_kept, mean_and_range
from gini_jax.evals.features import profile_of
from gini_jax.evals.inputs import Inputs, probe_inputs
from gini_jax.evals.selection import enough, mean_accuracies, subset_accuracy
from gini_jax.losses import gini_impurity

KEYS = {
    "prune_purest": ("Share of features that is enough, purest first", False),
    "prune_important": ("Share of features that is enough, most important first", False),
    "prune_random": ("Share of features that is enough, in random order", False),
}
DRAWS = 3


def measure(subject: Subject) -> dict[str, Any]:
    """Accuracies by number of features, `prune/ORDER [S]`, and the numbers of `KEYS`."""
    inputs = Inputs(subject.train, subject.test, subject.num_classes)
    train, train_labels, test, test_labels = probe_inputs(inputs, most=4000)
    count = train.shape[1]
    profile = profile_of(np.abs(train), train_labels, subject.num_classes)
    impurity = np.asarray(gini_impurity(jnp.asarray(profile)))
    head = subject.trained.head
    orders = {"purest": [np.argsort(impurity, kind="stable")]}
    if head is not None:
        importance = train.std(axis=0) * np.linalg.norm(head, axis=1)
        orders["important"] = [np.argsort(-importance, kind="stable")]
    rng = np.random.default_rng(0)
    orders["random"] = [rng.permutation(count) for _ in range(DRAWS)]
    powers = {2**i for i in range(count.bit_length())}
    sizes = np.array(sorted(powers | {count * i // 8 for i in range(1, 9)} - {0}))
    accuracy = subset_accuracy(train, train_labels, test, test_labels)
    found: dict[str, Any] = {"prune/sizes": sizes}
    for name, several in orders.items():
        curve = mean_accuracies(accuracy, several, sizes)
        found[f"prune/{name}"] = curve
        found[f"prune_{name}"] = enough(sizes, curve)
    return found


def draw(arrays: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> Figure:
    """Accuracy by the number of features kept, one panel for each order."""
    orders = ("purest", "important", "random")
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axis, order in zip(figure.subplots(1, 3, sharey=True), orders, strict=True):
        for colour, (group, runs) in zip(cycle(COLOURS), arrays.items(), strict=False):
            values = [run[f"prune/{order}"] for run in runs if f"prune/{order}" in run]
            if values:
                mean_and_range(axis, runs[0]["prune/sizes"], np.array(values), colour, group)
        axis.set_title(f"{order} first" if order != "random" else "random")
        by_features_kept(axis)
    figure.axes[0].set_ylabel("test accuracy of a ridge classifier")
    figure.axes[0].legend(fontsize=8)
    return figure
