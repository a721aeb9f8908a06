"""What a data source is, and what it becomes: the splits of a data set as arrays."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from gini_jax.errors import InputError, first_line


class Example(NamedTuple):
    """An image and its class.

    Attributes:
        image: an encoded file, its path, or pixels `[H, W, 1 or 3]`.
        label: the class.
        superclass: the group of classes, if the source has groups.
    """

    image: bytes | Path | np.ndarray
    label: int
    superclass: int = -1


class Source(Protocol):
    """A data set where it is stored. A new kind takes one new file and one line in `SOURCES`.

    Attributes:
        name: the set's name, for messages and the cache.
        splits: random-access examples by split: `train`, the split that the run tests on, and `val`
            if the set has one. Their lengths are known before anything is decoded.
        class_names: names of the `K` classes.
        superclass_names: names of groups of classes; empty if there are none.
        image_shape: height and width of all images; None if they differ.
    """

    name: str
    splits: Mapping[str, Any]  # of Sequence[Example]
    class_names: tuple[str, ...]
    superclass_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None]

    def fingerprint(self, split: str) -> Any:
        """JSON that changes with everything that determines a pixel or a label of a split.

        For files: their paths, sizes and times.
        """


SOURCE = (
    "a source is a class made from config.dataset, with name, class_names, superclass_names, "
    "image_shape, fingerprint(split), and splits: sequences of Example(image, label) by split, "
    "including 'train' and the split to test on; a label is an integer >= 0; "
    "docs/extending.md shows one"
)


def check_source(config: ConfigDict, create: Callable[[ConfigDict], Any]) -> Source:
    """Creates a source that is a plugin, and checks it.

    Raises:
        InputError: it cannot be created, or breaks the contract of `Source`.
    """
    part = f"dataset.name={config.name!r}"
    try:
        source = create(config)
        missing = [x for x in (*Source.__annotations__, "fingerprint") if not hasattr(source, x)]
        if missing:
            raise InputError(f"{part} has no {missing[0]}; {SOURCE}")
        if wrong := _wrong_attribute(source):
            raise InputError(f"{part}: {wrong}; {SOURCE}")
        for split, examples in source.splits.items():
            if not (hasattr(examples, "__len__") and hasattr(examples, "__getitem__")):
                raise InputError(f"{part}: split {split} is a {type(examples).__name__}; {SOURCE}")
            if len(examples):
                check_example(part, examples[0])
            json.dumps(source.fingerprint(split), sort_keys=True)
        if not source.splits.get("train"):
            raise InputError(f"{part} has no training images; {SOURCE}")
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{part} fails ({type(error).__name__}: {first_line(error)}); {SOURCE}"
        ) from error
    return source


def _wrong_attribute(source: Any) -> str:
    """What is wrong with a source's names, shape and fingerprint; "" for nothing."""
    for attribute, fewest in (("class_names", 2), ("superclass_names", 0)):
        names = getattr(source, attribute)
        is_list = isinstance(names, (tuple, list)) and all(isinstance(x, str) for x in names)
        if not is_list or len(set(names)) < len(names) or len(names) < fewest:
            return f"{attribute} is {names!r}, but must be a tuple of different strings"
    shape = source.image_shape
    fits = isinstance(shape, (tuple, list)) and len(shape) == 2
    if not fits or not all(x is None or (isinstance(x, int) and x > 0) for x in shape):
        return f"image_shape is {shape!r}, but must be height and width, or (None, None)"
    if not isinstance(source.name, str) or not source.name:
        return f"name is {source.name!r}, but must be a non-empty string"
    return ""


def check_example(part: str, example: Any) -> Example:
    """Checks an example of a source, and returns it.

    Raises:
        InputError: it is something else, or its label is no integer.

    Examples:
        >>> check_example("mine", Example(b"", "cat"))
        Traceback (most recent call last):
        gini_jax.errors.InputError: mine has an example with the label 'cat'; a source is ...
    """
    if not all(hasattr(example, name) for name in Example._fields):
        raise InputError(f"{part} has a {type(example).__name__} as an example; {SOURCE}")
    for name in ("label", "superclass"):
        value = getattr(example, name)
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or abs(int(value)) >= 2**31:
            raise InputError(f"{part} has an example with the {name} {value!r}; {SOURCE}")
    return example


# The names under which sets have their validation split, the most usual one first.
VALIDATION = ("validation", "val")


def own_validation(names: Iterable[str], config: ConfigDict, where: str) -> str | None:
    """The name of a set's own validation split; None if it has none, or if that is tested on.

    Raises:
        InputError: there is one, and `val_size` asks for another.

    Examples:
        >>> config = ConfigDict({"test_split": "test", "val_size": 0})
        >>> own_validation(["train", "validation"], config, "birds")
        'validation'
    """
    found = [name for name in VALIDATION if name in {*names} - {config.test_split}]
    if not found or config.test_split == "val":
        return None
    refuse_size(config, "val_size", where)
    return found[0]


def fifth(examples: int, config: ConfigDict, where: str) -> int:
    """How many of a set's images to test on where it has no test split: `test_size`, or a fifth.

    Examples:
        >>> fifth(133, ConfigDict({"test_size": 0}), "photos")
        photos has no test split: 26 of its 133 images are one; --config.dataset.test_size=N ...
        26
    """
    if config.test_size:
        return int(config.test_size)
    chosen = max(1, examples // 5)
    print(
        f"{where} has no test split: {chosen} of its {examples} images are one; "
        "--config.dataset.test_size=N takes another number"
    )
    return chosen


def refuse_size(config: ConfigDict, key: str, where: str) -> None:
    """Refuses `val_size` or `test_size` where the source's own split would silently replace it.

    Raises:
        InputError: the setting is not 0.
    """
    if config[key]:
        kind = {"val_size": "validation", "test_size": "test"}[key]
        raise InputError(
            f"dataset.{key}={config[key]}: {where} has its own {kind} split; set "
            f"--config.dataset.{key}=0"
        )


class Split(NamedTuple):
    """Images `[N, H, W, 3]`, uint8, and their labels `[N]`, int32."""

    images: Any
    labels: Any


class LazySubset:
    """Some rows of an array that is mapped from a file; each is read when it is indexed.

    Examples:
        >>> rows = LazySubset(np.array([[0], [10], [20]]), np.array([2, 0]))
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
    """A data set.

    Attributes:
        splits: `train`, `val` (may be empty) and `test`; `held_out` where classes are held out.
        class_names: names of the `K` classes.
        image_size: height and width that the network sees; stored images may be larger.
        superclass_names: names of groups of classes, if the set has them.
        superclass_of: the group of each of the `K` classes.
        digests: by split of the source, a hash of its pixels and labels, where it was decoded.
    """

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    image_size: int
    superclass_names: tuple[str, ...] = ()
    superclass_of: tuple[int, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """`K`."""
        return len(self.class_names)
