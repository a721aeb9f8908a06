"""Images in memory, as of a notebook: `gini_jax.train(config, data=(images, labels))`."""

import contextlib
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from gini_jax.data.sampling import stratified
from gini_jax.data.source import Example, fifth, refuse_size
from gini_jax.errors import InputError, first_line

_HELP = "give data=(images, labels), or a mapping such as {'train': (...), 'test': (...)}"
_lock, _in_memory, _users = threading.Lock(), dict[str, "_Given"](), Counter[str]()


class _Given(NamedTuple):
    """Checked arrays: images and classes by split, and the classes' names."""

    splits: dict[str, tuple[np.ndarray, np.ndarray]]
    class_names: tuple[str, ...]
    digest: str


@contextlib.contextmanager
def in_memory(data: Any) -> Iterator[str]:
    """Makes arrays known as a data set, within the context.

    Args:
        data: `(images, labels)`, to be divided as a folder of images is, or a mapping from `train`,
            and `val` and `test` if there are some, to such pairs. Images are uint8 `[N, H, W]` or
            `[N, H, W, 1 or 3]`; labels are `[N]` numbers or strings. The mapping may hold
            `class_names`, the names of the classes 0, 1, 2, ...

    Yields:
        What `config.dataset.name` is to be: the arrays' digest is part of it, so that a run is not
        resumed with others.

    Raises:
        InputError: the arrays break one of these rules.

    Examples:
        >>> with in_memory((np.zeros((4, 8, 8), np.uint8), ["cat", "dog", "cat", "dog"])) as name:
        ...     print(name)
        arrays:...
    """
    given = _checked(data)
    with _lock:
        _in_memory[given.digest] = given
        _users[given.digest] += 1
    try:
        yield f"arrays:{given.digest}"
    finally:
        with _lock:
            _users[given.digest] -= 1
            if not _users[given.digest]:  # no other thread trains on them
                del _in_memory[given.digest], _users[given.digest]


class Arrays:
    """Images and labels in memory; see `source.Source`.

    Without a test split, `test_size` (0: a fifth) and `val_size` images in all are split off, class
    by class.

    Args:
        config: `config.dataset`: `name`, `test_split`, `test_size`, `val_size` and `val_seed`.

    Raises:
        InputError: the arrays are not in this process.
    """

    superclass_names: tuple[str, ...] = ()

    def __init__(self, config: ConfigDict):
        self.name = config.name.replace(":", "-")
        digest = config.name.partition(":")[2]
        if digest not in _in_memory:
            raise InputError(
                f"dataset.name={config.name!r}: these arrays are not in memory; call "
                "gini_jax.train(config, data=...) with them"
            )
        splits, self.class_names, _ = _in_memory[digest]
        tested = config.test_split
        if tested in splits:
            refuse_size(config, "test_size", "data")
        if "val" in splits and tested != "val":
            refuse_size(config, "val_size", "data")
        sizes = {} if tested in splits else {tested: fifth(len(splits["train"][1]), config, "data")}
        if config.val_size and "val" not in splits:
            sizes["val"] = config.val_size
        if sizes:
            images, labels = splits["train"]
            keys = list(map(str, range(len(labels))))
            rows = stratified(labels, sizes, config.val_seed, keys)
            splits = splits | {name: (images[own], labels[own]) for name, own in rows.items()}
        self.splits = {name: _Examples(*own) for name, own in splits.items()}
        shapes = {images.shape[1:3] for images, _ in splits.values()}
        self.image_shape = shapes.pop() if len(shapes) == 1 else (None, None)

    def fingerprint(self, split: str) -> Any:
        """A hash of the split's pixels and labels."""
        return [self.splits[split].digest(), list(self.class_names)]


class _Examples(Sequence[Example]):
    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: Any) -> Any:
        return Example(self._images[index], int(self._labels[index]))

    def digest(self) -> str:
        """A hash of pixels and labels."""
        return _digest([self._images, self._labels])


def _checked(data: Any) -> _Given:
    if isinstance(data, Mapping):
        parts = {name: pair for name, pair in data.items() if name != "class_names"}
        names = data.get("class_names")
    else:
        parts, names = {"train": data}, None
    unknown = sorted(set(map(str, parts)) - {"train", "val", "test"})
    if "train" not in parts or unknown:
        what = f"an entry {unknown[0]!r}" if unknown else "no entry 'train'"
        raise InputError(f"data has {what}; {_HELP}")
    splits = {name: _pair(name, pair) for name, pair in parts.items()}
    if names is None:
        found = np.unique(splits["train"][1])
        names = [str(name) for name in found.tolist()]
    else:
        if isinstance(names, str) or not isinstance(names, (Sequence, np.ndarray)):
            raise InputError(
                f"data['class_names'] is {names!r}; give a list of names, such as ['cat', 'dog']"
            )
        names, found = [str(name) for name in names], np.arange(len(names))
        if splits["train"][1].dtype.kind in "US":  # labels are names, in any order
            found = np.unique(names)
    if len(set(names)) < max(2, len(names)):
        raise InputError(f"data has the classes {names}; it needs two or more different ones")
    by_name, numbered = found.dtype.kind in "US", {}
    for name, (images, labels) in splits.items():
        alike = (labels.dtype.kind in "iub") == (found.dtype.kind in "iub")
        place = np.searchsorted(found, labels if alike else found[:1])
        wrong = found[np.minimum(place, len(found) - 1)] != labels if alike else np.ones(1, bool)
        if wrong.any():
            raise InputError(
                f"data[{name!r}] has the label {labels[wrong.argmax()].item()!r}, which is none of "
                f"the classes {found.tolist()[:10]}; remove these examples, or add the class to "
                "'train'"
            )
        order = np.array([names.index(str(x)) for x in found.tolist()]) if by_name else None
        place = place if order is None else order[place]
        numbered[name] = (images, place.astype(np.int32))
    arrays = [array for name in sorted(numbered) for array in numbered[name]]
    return _Given(numbered, tuple(names), _digest([*arrays, np.array(names)])[:16])


def _pair(name: str, pair: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split, with the shapes and types that they must have."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(f"data[{name!r}] is a {type(pair).__name__}; {_HELP}")
    try:
        images, labels = (np.asarray(array) for array in pair)
    except ValueError as error:  # a list of images of different sizes
        raise InputError(
            f"data[{name!r}] is no array ({first_line(error)}); all images must have one size, or "
            "lie in a folder: --config.dataset.name=folder"
        ) from error
    channels = images.shape[3:]
    if images.ndim not in (3, 4) or channels not in ((), (1,), (3,)):
        raise InputError(
            f"data[{name!r}] has images of shape {images.shape}; they must be [N, H, W], or "
            "[N, H, W, C] with 1 or 3 channels"
        )
    if images.dtype != np.uint8:
        unit = images.size and images.dtype.kind == "f" and 0 <= images.min() <= images.max() <= 1
        fix = "(images * 255).round().astype('uint8')" if unit else "images.astype('uint8')"
        raise InputError(
            f"data[{name!r}] has images of type {images.dtype}; they must be uint8, 0 to 255: {fix}"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iubUSO" or len(labels) != len(images):
        fix = "labels.argmax(axis=1)" if labels.ndim == 2 else "labels.astype(int)"
        raise InputError(
            f"data[{name!r}] has labels of shape {labels.shape} and type {labels.dtype} for "
            f"{len(images)} images; they must be [{len(images)}] integers or strings, such as {fix}"
        )
    if not len(images):
        raise InputError(f"data[{name!r}] is empty; leave it out, or give it images")
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels)
    if labels.dtype.kind == "O":
        if wrong := [x for x in labels.tolist() if not isinstance(x, (str, int, np.integer))]:
            raise InputError(
                f"data[{name!r}] has the label {wrong[0]!r}; labels must be integers or strings; "
                "leave such examples out"
            )
        labels = labels.astype(str)
    if labels.dtype.kind == "u":
        labels = labels.astype(np.int64)
    return images, labels


def _digest(arrays: Sequence[np.ndarray]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(str((array.shape, array.dtype.str)).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
