"""Image sets as uint8 arrays: the digits of scikit-learn, and any classification set of TFDS."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gini_jax import tfds_images
from gini_jax.errors import InputError

DIGITS_SIZES = {"train": 1197, "val": 200, "test": 400}


class Split(NamedTuple):
    """Images `[N, H, W, 3]`, uint8, and their labels `[N]`, int32."""

    images: Any
    labels: Any


class Rows:
    """Some rows of an array that is mapped from a file, read when they are asked for.

    Example:
        >>> rows = Rows(np.array([[0], [10], [20]]), np.array([2, 0]))
        >>> rows.shape, rows[np.array([0])].tolist(), np.asarray(rows).tolist()
        ((2, 1), [[20]], [[20], [0]])
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray):
        self._array, self._rows = array, rows
        self.shape, self.dtype = (len(rows), *array.shape[1:]), array.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._array[self._rows[index]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


@dataclass(frozen=True)
class Dataset:
    """An image set.

    Attributes:
        splits: `train`, `val` (may be empty) and `test`.
        class_names: names of the `K` classes.
        image_size: height and width that the network sees; stored images may be larger.
        superclass_names: names of groups of classes, where the set has them.
        superclass_of: `K` numbers: the group of each class.
    """

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    image_size: int
    superclass_names: tuple[str, ...] = ()
    superclass_of: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        """`K`."""
        return len(self.class_names)


def load_dataset(
    config: Any, cache_dir: Path | None = None, only: Iterable[str] = ("train", "val", "test")
) -> Dataset:
    """The splits of a data set, decoded once and then mapped from the cache.

    Args:
        config: `config.dataset`: `name`, `data_dir`, `test_split`, `val_size`, `val_seed`,
            `image_size`, `num_classes`.
        cache_dir: where decoded TFDS sets are kept; `$XDG_CACHE_HOME/gini_jax` by default.
        only: the splits that are needed; of the others the shapes stand in their place.

    Returns:
        The data set; TFDS's training images less `val_size` of them, drawn by `val_seed`, are the
        training split.

    Raises:
        InputError: the set is unknown or not there, a split is too small, or there are fewer
            classes in it than `num_classes`.

    Example:
        >>> from gini_jax.config import default_config
        >>> digits = load_dataset(default_config().dataset)
        >>> {name: split.images.shape for name, split in digits.splits.items()}["test"]
        (400, 8, 8, 3)
    """
    if config.name == "digits":
        _check_digits(config)
        dataset = _load_digits()
        _check_classes(config, dataset.splits["train"].labels)
        return dataset
    builder = tfds_images.find(config.name, config.data_dir, config.test_split)
    dataset = _tfds_shapes(config, builder)
    size = config.image_size or "native"
    folder = (cache_dir or _default_cache_dir()) / f"{config.name}-{builder.version}-{size}"
    splits, superclass_of = dict(dataset.splits), dataset.superclass_of
    if "test" in only:
        images, labels, superclass_of = tfds_images.load(
            builder, config.test_split, config.image_size, folder
        )
        _check_labels(config, labels, dataset.num_classes, config.test_split)
        splits["test"] = Split(images, labels)
    if {"train", "val"} & set(only):
        images, labels, superclass_of = tfds_images.load(
            builder, "train", config.image_size, folder
        )
        _check_labels(config, labels, dataset.num_classes, "train")
        _check_classes(config, labels)
        order = np.random.default_rng(config.val_seed).permutation(len(labels))
        for name, rows in (("val", order[: config.val_size]), ("train", order[config.val_size :])):
            rows = np.sort(rows)
            splits[name] = Split(Rows(images, rows), labels[rows])
    return replace(dataset, splits=splits, superclass_of=superclass_of)


def dataset_shapes(config: Any) -> Dataset:
    """A data set with the shapes of its arrays in their place; nothing is decoded.

    Args:
        config: `config.dataset`.

    Raises:
        InputError: as in `load_dataset`.

    Example:
        >>> from gini_jax.config import default_config
        >>> dataset_shapes(default_config().dataset).splits["train"].images.shape
        (1197, 8, 8, 3)
    """
    if config.name == "digits":
        _check_digits(config)
        return Dataset(_shapes(DIGITS_SIZES, 8), tuple(map(str, range(10))), 8)
    builder = tfds_images.find(config.name, config.data_dir, config.test_split)
    return _tfds_shapes(config, builder)


def _tfds_shapes(config: Any, builder: Any) -> Dataset:
    features = builder.info.features
    size = config.image_size or features["image"].shape[0]
    if size is None:
        raise InputError(
            f"images of {config.name} have many sizes; set --config.dataset.image_size, such as 224"
        )
    if not config.image_size and features["image"].shape[1] != size:
        raise InputError(
            f"images of {config.name} are not square; set --config.dataset.image_size={size}"
        )
    train, test = (
        builder.info.splits[split].num_examples for split in ("train", config.test_split)
    )
    if config.val_size >= train:
        raise InputError(
            f"dataset.val_size={config.val_size} leaves none of the {train} training images of "
            f"{config.name}; set a smaller --config.dataset.val_size"
        )
    sizes = {"train": train - config.val_size, "val": config.val_size, "test": test}
    names = tuple(features["label"].names)
    if config.num_classes not in (0, len(names)):
        raise _other_classes(config, f"has {len(names)} classes")
    groups = tuple(features["coarse_label"].names) if "coarse_label" in features else ()
    stored = tfds_images.stored_size(config.image_size) or size
    return Dataset(_shapes(sizes, stored), names, size, groups)


def _shapes(sizes: dict[str, int], stored: int) -> dict[str, Split]:
    return {
        name: Split(
            jax.ShapeDtypeStruct((n, stored, stored, 3), np.uint8),
            jax.ShapeDtypeStruct((n,), np.int32),
        )
        for name, n in sizes.items()
    }


def _check_labels(config: Any, labels: np.ndarray, num_classes: int, split: str) -> None:
    """Some sets keep the labels of their test split back."""
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"split {split} of {config.name} has labels from {labels.min()} to {labels.max()}, "
            f"and its classes are 0 to {num_classes - 1}; where labels are held back, test on "
            "another split: --config.dataset.test_split=validation"
        )


def _check_classes(config: Any, labels: np.ndarray) -> None:
    """The training images must show as many classes as the config tells, if it does."""
    if config.num_classes not in (0, found := len(np.unique(labels))):
        raise _other_classes(config, f"shows {found} classes in its training images")


def _other_classes(config: Any, what: str) -> InputError:
    return InputError(
        f"dataset.num_classes={config.num_classes}, but {config.name} {what}; give the data that "
        "is meant, or set --config.dataset.num_classes=0 for as many as there are"
    )


def epoch_order(seed: int, epoch: int, num_examples: int, batch_size: int) -> np.ndarray:
    """The examples of each batch of an epoch, a pure function of seed and epoch.

    Args:
        seed: the run's seed.
        epoch: the epoch, counted from 0.
        num_examples: size of the training split; the remainder of a batch is left out.
        batch_size: examples in a global batch.

    Returns:
        `[num_examples // batch_size, batch_size]` int32.

    Example:
        >>> sorted(epoch_order(seed=0, epoch=3, num_examples=4, batch_size=2).ravel().tolist())
        [0, 1, 2, 3]
    """
    steps = num_examples // batch_size
    order = np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)
    return order[: steps * batch_size].reshape(steps, batch_size)


def _default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "gini_jax"


def _check_digits(config: Any) -> None:
    if config.val_size or config.image_size or config.test_split != "test":
        raise InputError(
            f"dataset.val_size={config.val_size}, image_size={config.image_size}, test_split="
            f"{config.test_split!r}: digits has its own splits and size; leave them out"
        )


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=DIGITS_SIZES["test"], stratify=labels, random_state=0
    )
    train, val = train_test_split(
        rest, test_size=DIGITS_SIZES["val"], stratify=labels[rest], random_state=0
    )
    parts = {"train": train, "val": val, "test": test}
    splits = {name: Split(images[part], labels[part]) for name, part in parts.items()}
    return Dataset(splits, tuple(str(name) for name in digits.target_names), image_size=8)
