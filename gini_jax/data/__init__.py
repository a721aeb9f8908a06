"""Data sets by name, as uint8 arrays: opened by a source, decoded once, mapped from the cache."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gini_jax.config.registry import Registry
from gini_jax.data import cache
from gini_jax.data.arrays import Arrays
from gini_jax.data.digits import Digits
from gini_jax.data.fashion_mnist import open_fashion_mnist
from gini_jax.data.folder import Folder
from gini_jax.data.hf import HuggingFace
from gini_jax.data.images import stored_size
from gini_jax.data.protocols import divided, held_classes, noisy, with_classes
from gini_jax.data.sampling import balanced_subset, some_labels
from gini_jax.data.source import Dataset, LazySubset, Source, Split, check_source
from gini_jax.data.tfds import Tfds
from gini_jax.errors import InputError

__all__ = ["SOURCES", "Dataset", "Source", "Split", "dataset_shapes", "load_dataset", "open_source"]

# By the part of a set's name before its first colon, if any; all other names are those of TFDS.
SOURCES = Registry(
    "dataset.name",
    {
        "digits": Digits,
        "fashion_mnist": open_fashion_mnist,
        "arrays": Arrays,
        "folder": Folder,
        "hf": HuggingFace,
    },
)


def open_source(config: ConfigDict) -> Source:
    """The source that `config.dataset` names; nothing is decoded.

    Raises:
        InputError: the set is unknown or missing.

    Examples:
        >>> from gini_jax.config import default_config
        >>> len(open_source(default_config().dataset).splits["test"])
        400
    """
    kind, _, name = config.name.partition(":")
    if name.isidentifier() and kind not in SOURCES:  # TFDS has a version after the colon
        return check_source(config, SOURCES.find(config.name))
    source: Source = SOURCES.get(kind, Tfds)(config)
    return source


def load_dataset(
    config: ConfigDict,
    cache_dir: Path | None = None,
    only: Iterable[str] = ("train", "val", "test"),
    check: Callable[[Dataset], None] = lambda shapes: None,
) -> Dataset:
    """The splits of a data set, decoded once and then mapped from the cache.

    Args:
        config: `config.dataset`.
        cache_dir: where decoded sets are kept; `$XDG_CACHE_HOME/gini_jax` by default.
        only: the splits that are needed; the others hold only the shapes of their arrays.
        check: called with the data set's shapes before anything is decoded; see `dataset_shapes`.
            Where classes are held out, it is called with the data set itself, once it is decoded.

    Returns:
        The data set. If the source has no validation split, `val_size` training images, drawn with
        `val_seed`, form one. With `train_size`, the training split is a class-balanced subset of
        the rest, also drawn with `val_seed`. With `labelled`, only so many of its images of each
        class keep their label; the others have -1. With `held_out_classes`, the test images of
        these form a split, `held_out`; with `label_noise`, some training labels are wrong.

    Raises:
        InputError: the set is unknown or missing, a split is too small, or the number of classes
            is not `num_classes`.

    Examples:
        >>> from gini_jax.config import default_config
        >>> digits = load_dataset(default_config().dataset)
        >>> {name: split.images.shape for name, split in digits.splits.items()}["test"]
        (400, 8, 8, 3)
    """
    source = open_source(config)
    dataset = _shapes(config, source)
    divides = bool(config.held_out_classes or config.superclasses)
    if divides:
        held_classes(config, dataset)
        only = dataset.splits  # only labels tell how many images the classes left have
    else:
        check(dataset)
    folder = cache_dir or cache.default_folder()
    splits, superclass_of, digests = dict(dataset.splits), dataset.superclass_of, {}
    own_val = _has_val(config, source)
    needed = {"train" if name == "val" and not own_val else name for name in only}
    for name in sorted(needed):
        name_there = config.test_split if name == "test" else name
        there = cache.decoded(source, name_there, config.image_size, folder)
        superclass_of = _agreed(config, superclass_of, there.superclass_of)
        _check_labels(config, there.labels, dataset.num_classes, name_there)
        splits[name], digests[name] = Split(there.images, there.labels), there.digest
    if "train" in needed:
        _check_classes(config, splits["train"].labels)
    dataset = replace(dataset, splits=splits, superclass_of=superclass_of, digests=digests)
    if divides:
        dataset = divided(config, dataset)
    if "train" in needed:
        dataset = replace(dataset, splits=_chosen(config, dataset, own_val))
    if divides:
        check(dataset)
    return dataset


def _chosen(config: ConfigDict, dataset: Dataset, own_val: bool) -> dict[str, Split]:
    """The splits after all draws: validation, a smaller training set, wrong and missing labels."""
    splits = dict(dataset.splits)
    images, labels = splits["train"]
    if not own_val and config.val_size:
        _check_val_size(config, len(labels))
        order = np.random.default_rng(config.val_seed).permutation(len(labels))
        val, train = np.sort(order[: config.val_size]), np.sort(order[config.val_size :])
        splits["val"] = Split(LazySubset(images, val), labels[val])
        splits["train"] = Split(LazySubset(images, train), labels[train])
    elif not own_val:
        splits["val"] = Split(images[:0], labels[:0])
    if config.train_size:
        images, labels = splits["train"]
        _check_train_size(config, len(labels), dataset.num_classes)
        rows = balanced_subset(labels, config.train_size, config.val_seed)
        splits["train"] = Split(LazySubset(images, rows), labels[rows])
    images, labels = splits["train"]
    if config.labelled:
        labels = some_labels(labels, config.labelled, config.val_seed)
    if config.label_noise:
        kind, seed = config.label_noise_kind, config.val_seed
        rows, labels = np.flatnonzero(labels >= 0), labels.copy()
        labels[rows] = noisy(labels[rows], dataset.num_classes, config.label_noise, kind, seed)
    return splits | {"train": Split(images, labels)}


def dataset_shapes(config: ConfigDict) -> Dataset:
    """A data set that holds the shapes of its arrays instead of the arrays; nothing is decoded.

    Args:
        config: `config.dataset`.

    Raises:
        InputError: as in `load_dataset`.

    Examples:
        >>> from gini_jax.config import default_config
        >>> dataset_shapes(default_config().dataset).splits["train"].images.shape
        (1197, 8, 8, 3)
    """
    return with_classes(config, _shapes(config, open_source(config)))


def _shapes(config: ConfigDict, source: Source) -> Dataset:
    size = _image_size(config, source)
    if config.test_split not in source.splits:
        raise InputError(
            f"data set {config.name!r} has splits {sorted(source.splits)}, but no "
            f"{config.test_split!r}; set --config.dataset.test_split to one of them"
        )
    if not len(source.splits[config.test_split]):
        raise InputError(
            f"split {config.test_split} of {config.name} is empty; add images to it, or test on "
            f"another: --config.dataset.test_split, one of {sorted(source.splits)}"
        )
    train, val = _train_and_val(config, source)
    sizes = {"train": train, "val": val, "test": len(source.splits[config.test_split])}
    classes = len(source.class_names)
    if config.num_classes not in (0, classes):
        raise _other_classes(config, f"has {classes} classes")
    stored = stored_size(config.image_size) or size
    import jax  # imported late: decoding processes import this package without jax

    shapes = {
        name: Split(
            jax.ShapeDtypeStruct((n, stored, stored, 3), np.uint8),
            jax.ShapeDtypeStruct((n,), np.int32),
        )
        for name, n in sizes.items()
    }
    return Dataset(shapes, source.class_names, size, source.superclass_names)


def _image_size(config: ConfigDict, source: Source) -> int:
    """The side of the images that the network sees."""
    height, width = source.image_shape
    size = config.image_size or height
    if size is None:
        raise InputError(
            f"{config.name} does not have one size for all of its images; set "
            "--config.dataset.image_size, such as 224"
        )
    if not config.image_size and width != size:
        raise InputError(
            f"images of {config.name} are not square; set --config.dataset.image_size={size}"
        )
    return size


def _train_and_val(config: ConfigDict, source: Source) -> tuple[int, int]:
    """How many images there are to train on, and to validate on."""
    train = len(source.splits["train"])
    if _has_val(config, source):
        val = len(source.splits["val"])
    else:
        _check_val_size(config, train)
        val, train = config.val_size, train - config.val_size
    if not (config.held_out_classes or config.superclasses):  # else known once labels are read
        _check_train_size(config, train, len(source.class_names))
    return config.train_size or train, val


def _check_val_size(config: ConfigDict, train: int) -> None:
    if config.val_size >= train:
        raise InputError(
            f"dataset.val_size={config.val_size} leaves none of the {train} training images of "
            f"{config.name}; set a smaller --config.dataset.val_size"
        )


def _check_train_size(config: ConfigDict, train: int, classes: int) -> None:
    if config.train_size > train:
        raise InputError(
            f"dataset.train_size={config.train_size} exceeds the {train} training images of "
            f"{config.name}; set --config.dataset.train_size=0 to take all"
        )
    if 0 < config.train_size < classes:
        raise InputError(
            f"dataset.train_size={config.train_size} leaves some of the {classes} classes of "
            f"{config.name} without a training image; set --config.dataset.train_size={classes} "
            "or more, or 0 to take all"
        )


def _has_val(config: ConfigDict, source: Source) -> bool:
    return "val" in source.splits and config.test_split != "val"


def _agreed(
    config: ConfigDict, found: tuple[int, ...], of_split: tuple[int, ...]
) -> tuple[int, ...]:
    """The superclass of each class, from the splits so far and one more; -1: not known."""
    if not found:
        return of_split
    for k, (a, b) in enumerate(zip(found, of_split, strict=True)):
        if -1 not in (a, b) and a != b:
            raise InputError(
                f"class {k} of {config.name} has superclass {a} in one split and {b} in another; "
                "give all examples of a class the same superclass"
            )
    return tuple(max(pair) for pair in zip(found, of_split, strict=True))


def _check_labels(config: ConfigDict, labels: np.ndarray, num_classes: int, split: str) -> None:
    """Rejects labels that are not classes: some sets do not publish their test labels."""
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"split {split} of {config.name} has labels from {labels.min()} to {labels.max()}, "
            f"but its classes are 0 to {num_classes - 1}; if the labels are withheld, test on "
            "another split: --config.dataset.test_split=validation"
        )


def _check_classes(config: ConfigDict, labels: np.ndarray) -> None:
    """Checks that the training images have as many classes as the config states, if it does."""
    if config.num_classes not in (0, found := len(np.unique(labels))):
        raise _other_classes(config, f"has {found} classes among its training images")


def _other_classes(config: ConfigDict, what: str) -> InputError:
    return InputError(
        f"dataset.num_classes={config.num_classes}, but {config.name} {what}; use the "
        "intended data, or set --config.dataset.num_classes=0 to accept any number"
    )
