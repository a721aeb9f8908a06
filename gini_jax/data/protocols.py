"""Changes to a data set for the protocols of benches: held-out classes and wrong labels."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Integer
from ml_collections import ConfigDict

from gini_jax.data.source import Dataset, LazySubset, Split
from gini_jax.errors import InputError

HELD_OUT = "held_out"  # the split of the test images whose classes training does not see


def held_classes(config: ConfigDict, dataset: Dataset) -> list[int]:
    """The classes that are held out: the last ones, or with `superclasses` the last ones of each.

    Args:
        config: `config.dataset`: `held_out_classes` and `superclasses`.
        dataset: with all of its classes.

    Raises:
        InputError: too few classes would be left, the superclasses cannot give as many each, or
            there are no superclasses.
    """
    count, total = config.held_out_classes, dataset.num_classes
    groups = dataset.superclass_of
    if config.superclasses and not dataset.superclass_names:
        raise InputError(
            f"dataset.superclasses=True: {config.name} has no superclasses; set another data set, "
            "such as --config.dataset.name=cifar100, or --config.dataset.superclasses=False"
        )
    if not config.superclasses:
        if count > total - 2:
            raise InputError(
                f"dataset.held_out_classes={count} leaves less than 2 of the {total} classes of "
                f"{config.name} to train on; set --config.dataset.held_out_classes={total // 2}"
            )
        return list(range(total - count, total))
    number = len(dataset.superclass_names)
    each, rest = divmod(count, number)
    fewest = total // number if not groups else int(np.bincount(groups, minlength=number).min())
    if rest or each >= fewest:
        raise InputError(
            f"dataset.held_out_classes={count} must be a multiple of the {number} superclasses of "
            f"{config.name} that leaves a class of each; set "
            f"--config.dataset.held_out_classes={number}"
        )
    members = [np.flatnonzero(np.array(groups) == g) for g in range(number)] if groups else []
    return sorted(int(k) for own in members for k in own[len(own) - each :])


def divided(config: ConfigDict, dataset: Dataset) -> Dataset:
    """A data set without its held-out classes, whose test images become the split `held_out`.

    Args:
        config: `config.dataset`.
        dataset: decoded; the splits that are only shapes stay as they are.

    Returns:
        The data set with fewer classes. With `superclasses`, all labels are superclasses, those of
        held-out images too; otherwise held-out images keep their old labels.

    Raises:
        InputError: see `held_classes`.
    """
    held = held_classes(config, dataset)
    splits = dict(dataset.splits)
    for name, split in dataset.splits.items():
        if isinstance(split.labels, np.ndarray):
            kept = ~np.isin(split.labels, held)
            splits[name] = _rows(split, kept)
            if name == "test" and held:
                splits[HELD_OUT] = _rows(split, ~kept)
    if config.superclasses:
        of = np.array(dataset.superclass_of, np.int32)
        splits = {
            name: Split(x.images, of[x.labels] if isinstance(x.labels, np.ndarray) else x.labels)
            for name, x in splits.items()
        }
    return replace(with_classes(config, dataset), splits=splits)


def with_classes(config: ConfigDict, dataset: Dataset) -> Dataset:
    """A data set, decoded or not, that names only the classes that training sees.

    Raises:
        InputError: see `held_classes`.
    """
    held = held_classes(config, dataset)
    if config.superclasses:
        names = dataset.superclass_names
        return replace(dataset, class_names=names, superclass_names=(), superclass_of=())
    left = dataset.num_classes - len(held)
    return replace(
        dataset,
        class_names=dataset.class_names[:left],
        superclass_of=dataset.superclass_of[:left],
    )


def _rows(split: Split, kept: np.ndarray) -> Split:
    rows = np.flatnonzero(kept)
    return Split(LazySubset(split.images, rows), split.labels[rows])


def symmetric(labels: np.ndarray, num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Any other class, each with the same probability."""
    return (labels + rng.integers(1, num_classes, len(labels))) % num_classes


def pairwise(labels: np.ndarray, num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """The next class; the first one after the last."""
    return (labels + 1) % num_classes


NOISES: dict[str, Callable[[np.ndarray, int, Any], np.ndarray]] = {
    "symmetric": symmetric,
    "pairwise": pairwise,
}


def noisy(
    labels: Integer[np.ndarray, " N"], num_classes: int, share: float, kind: str, seed: int
) -> Integer[np.ndarray, " N"]:
    """Replaces a share of the labels by wrong ones.

    Args:
        labels: of the training split.
        num_classes: `K`.
        share: of the examples; `round(share * N)` of them, drawn at random, change.
        kind: one of `NOISES`.
        seed: of the draw.

    Examples:
        >>> (noisy(np.zeros(10, np.int32), 3, 0.2, "pairwise", seed=0) == 1).sum()
        np.int64(2)
    """
    rng = np.random.default_rng((seed, 2**32 - 2))  # another stream than those of other draws
    rows = rng.permutation(len(labels))[: round(share * len(labels))]
    changed = labels.copy()
    changed[rows] = NOISES[kind](labels[rows], num_classes, rng)
    return changed
