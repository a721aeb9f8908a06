"""Which training examples form the batches of an epoch, and which form a smaller training set.

A new sampler takes one function and one line in `SAMPLERS`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int32, Integer
from ml_collections import ConfigDict

from gini_jax.config.registry import Registry
from gini_jax.errors import InputError


def epoch_order(
    config: ConfigDict, epoch: int, labels: Integer[np.ndarray, " N"]
) -> Int32[np.ndarray, "steps batch"]:
    """The examples of each batch of an epoch, a pure function of seed and epoch.

    Args:
        config: the run's settings: `seed`, `batch_size`, `dataset.sampler` and
            `dataset.examples_per_class`.
        epoch: the epoch, counted from 0.
        labels: of the training examples.

    Returns:
        Rows of the training split, `[N // batch_size, batch_size]`.

    Examples:
        >>> from gini_jax.config import default_config
        >>> config = default_config()
        >>> config.batch_size = 2
        >>> sorted(epoch_order(config, epoch=3, labels=np.zeros(4, int)).ravel().tolist())
        [0, 1, 2, 3]
    """
    rng, name = np.random.default_rng((config.seed, epoch)), config.dataset.sampler
    order = np.asarray(SAMPLERS.find(name)(rng, labels, config))
    shape = steps_of_epoch(len(labels), config.batch_size), config.batch_size
    whole = order.dtype.kind in "iu" and order.shape == shape
    if not whole or (order.size and not 0 <= order.min() <= order.max() < len(labels)):
        raise InputError(
            f"dataset.sampler={name!r} returned {order.dtype} of shape {order.shape}; a sampler is "
            f"a function of a generator, labels [N] and the config that returns rows of the "
            f"training split, integers [steps, batch_size], here {shape}"
        )
    return order.astype(np.int32)


def steps_of_epoch(examples: int, batch_size: int) -> int:
    """The steps of an epoch; an incomplete last batch is left out.

    Examples:
        >>> steps_of_epoch(7, batch_size=2)
        3
    """
    return examples // batch_size


def calls_of_epoch(
    first: int, steps_per_epoch: int, steps_per_call: int
) -> Iterator[tuple[int, int]]:
    """The first step of each compiled call up to the end of an epoch, and its number of steps.

    Args:
        first: step at which the first call starts; the calls run to the end of its epoch.
        steps_per_epoch: as from `steps_of_epoch`.
        steps_per_call: most steps of a call; no call goes beyond the epoch's end.

    Examples:
        >>> list(calls_of_epoch(0, steps_per_epoch=3, steps_per_call=2))
        [(0, 2), (2, 1)]
    """
    end = (first // steps_per_epoch + 1) * steps_per_epoch
    for start in range(first, end, steps_per_call):
        yield start, min(steps_per_call, end - start)


def shuffled(
    rng: np.random.Generator, labels: Integer[np.ndarray, " N"], config: ConfigDict
) -> Integer[np.ndarray, "steps batch"]:
    """Every example once, in random order; an incomplete last batch is left out."""
    steps = steps_of_epoch(len(labels), config.batch_size)
    order = rng.permutation(len(labels))
    return order[: steps * config.batch_size].reshape(steps, config.batch_size)


def class_balanced(
    rng: np.random.Generator, labels: Integer[np.ndarray, " N"], config: ConfigDict
) -> Integer[np.ndarray, "steps batch"]:
    """Batches of P random classes with M examples each, as metric learning samples them.

    Each class goes through its examples in random order, again and again, so a small class is seen
    as often as a large one. `M = dataset.examples_per_class` and `P = batch_size / M`.
    """
    steps = steps_of_epoch(len(labels), config.batch_size)
    each = config.dataset.examples_per_class
    classes = np.unique(labels)
    per_batch = config.batch_size // each
    chosen = np.stack([rng.permutation(classes)[:per_batch] for _ in range(steps)])
    order = np.empty((steps, per_batch, each), np.int64)
    for k in classes:
        own, places = np.flatnonzero(labels == k), chosen == k
        rounds = -(-places.sum() * each // len(own))
        drawn = np.concatenate([rng.permutation(own) for _ in range(rounds)] or [own])
        order[places] = drawn[: places.sum() * each].reshape(-1, each)
    return rng.permuted(order.reshape(steps, -1), axis=1)


SAMPLERS = Registry("dataset.sampler", {"shuffled": shuffled, "class_balanced": class_balanced})


def check_sampler(config: ConfigDict, num_classes: int) -> None:
    """Refuses batches that cannot be divided into classes.

    Args:
        config: the run's settings.
        num_classes: classes that have training examples.

    Raises:
        InputError: `batch_size` is no multiple of `examples_per_class`, or takes more classes than
            there are.

    Examples:
        >>> from gini_jax.config import default_config
        >>> check_sampler(default_config(), num_classes=10)
    """
    if config.dataset.sampler != "class_balanced":
        return
    each, size = config.dataset.examples_per_class, config.batch_size
    if size % each:
        raise InputError(
            f"batch_size={size} is not divisible by dataset.examples_per_class={each}; set "
            f"--config.batch_size={max(size // each, 1) * each}",
            fix=("batch_size", max(size // each, 1) * each),
        )
    if size // each > num_classes:
        fitting = next(
            m for m in range(each, size + 1) if size % m == 0 and size // m <= num_classes
        )
        raise InputError(
            f"batch_size={size} with dataset.examples_per_class={each} takes {size // each} "
            f"classes per batch, but there are only {num_classes}; set "
            f"--config.dataset.examples_per_class={fitting}",
            fix=("dataset.examples_per_class", fitting),
        )


def balanced_subset(
    labels: Integer[np.ndarray, " N"], size: int, seed: int
) -> Integer[np.ndarray, " size"]:
    """Random rows of a split, spread as evenly over the classes as the split allows.

    Args:
        labels: of the split.
        size: number of rows, at most `N`.
        seed: of the draw; a larger subset with the same seed contains a smaller one.

    Returns:
        The rows, in rising order.

    Examples:
        >>> labels = np.array([0, 0, 0, 0, 1, 1, 2])
        >>> np.bincount(labels[balanced_subset(labels, 5, seed=0)]).tolist()
        [2, 2, 1]
    """
    order, rank = _ranks(labels, np.random.default_rng(seed))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:size])


def some_labels(
    labels: Integer[np.ndarray, " N"], each: int, seed: int
) -> Integer[np.ndarray, " N"]:
    """Keeps some random labels of each class; the others become -1.

    Args:
        labels: of a split.
        each: how many labels of each class to keep; all if a class has fewer.
        seed: of the draw; a larger `each` with the same seed keeps the same labels and more.

    Examples:
        >>> np.bincount(some_labels(np.array([0, 0, 0, 1, 1, 2]), 2, seed=0) + 1).tolist()
        [1, 2, 2, 1]
    """
    # No epoch's order uses this stream: else labelled examples would fill the first batches.
    _, rank = _ranks(labels, np.random.default_rng((seed, 2**32 - 1)))
    return np.where(rank < each, labels, -1).astype(labels.dtype)


def _ranks(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random order of examples, and by example its place in this order within its class."""
    order = rng.permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    for k in np.unique(labels):
        own = order[labels[order] == k]
        rank[own] = np.arange(len(own))
    return order, rank


def stratified(
    labels: Integer[np.ndarray, " N"], sizes: Mapping[str, int], seed: int, keys: Sequence[str]
) -> dict[str, Integer[np.ndarray, " n"]]:
    """Divides a set class by class, so that each part has every class in proportion.

    The examples of a class are ranked by a hash of seed and key. So an example that is added later
    takes its own rank, and leaves the order of the others as it was.

    Args:
        labels: of all examples.
        sizes: how many examples go into each part.
        seed: of the draw.
        keys: a name for each example that does not change, such as its path.

    Returns:
        The rows of each part, in rising order; the rest as `train`, with every class.

    Raises:
        InputError: less than one example of each class would be left.

    Examples:
        >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
        >>> parts = stratified(labels, {"test": 4}, seed=0, keys="abcdefgh")
        >>> [np.bincount(labels[rows]).tolist() for rows in parts.values()]
        [[2, 2], [2, 2]]
    """
    taken = np.zeros(len(labels), bool)
    classes, counts = np.unique(labels, return_counts=True)
    if sum(sizes.values()) > len(labels) - len(classes):
        raise InputError(
            f"{', '.join(f'{n} images for {name}' for name, n in sizes.items())} leave less than "
            f"one of each class to train on; take at most {len(labels) - len(classes)} in all, by "
            "--config.dataset.test_size and --config.dataset.val_size"
        )
    ranked = np.array(sorted(range(len(labels)), key=lambda i: _rank(seed, keys[i])), int)
    parts = {}
    for name, size in sizes.items():
        rows: list[int] = []
        most = np.array([np.sum(~taken[labels == k]) - 1 for k in classes])
        share = counts * size / len(labels)
        number = np.minimum(share.astype(int), most)
        while number.sum() < size:  # one more of the class that lacks most
            number[np.argmax(np.where(number < most, share - number, -np.inf))] += 1
        for k, n in zip(classes, number, strict=True):
            rows += ranked[(labels[ranked] == k) & ~taken[ranked]][:n].tolist()
        taken[rows] = True
        parts[name] = np.array(sorted(rows), int)
    return parts | {"train": np.flatnonzero(~taken)}


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed} {key}".encode("utf-8", "surrogateescape")).digest()
