"""Fashion-MNIST from its authors' files, as Debian's `dataset-fashion-mnist` installs them."""

import gzip
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from gini_jax.data.source import Example, Source
from gini_jax.errors import InputError
from gini_jax.storage import storage_path

INSTALLED = Path("/usr/share/datasets/fashion-mnist")
FILES = {"train": "train", "test": "t10k"}  # the start of the files' names
NAMES: tuple[str, ...] = (
    *("T-shirt", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


class FashionMnist:
    """60,000 and 10,000 grey images of ten kinds of clothes, 28x28; see `source.Source`.

    Args:
        config: `config.dataset`: `data_dir` is the folder of the four files; that of the Debian
            package by default.

    Raises:
        InputError: the files are not there, or damaged.

    References:
        Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine
        learning algorithms", 2017 (arXiv 1708.07747), table 2: the names of the classes.
    """

    name = "fashion_mnist"
    class_names = NAMES
    superclass_names: tuple[str, ...] = ()
    image_shape: tuple[int | None, int | None] = (28, 28)
    splits: Mapping[str, Any]

    def __init__(self, config: ConfigDict):
        if config.image_size or config.test_split != "test":
            raise InputError(
                f"dataset.image_size={config.image_size}, test_split={config.test_split!r}: "
                "fashion_mnist has its own size and test split; leave both out"
            )
        self._folder = folder = _folder(config)
        self.splits = {
            split: _Examples(
                folder / f"{start}-images-idx3-ubyte.gz",
                _array(folder / f"{start}-labels-idx1-ubyte.gz", 1),
            )
            for split, start in FILES.items()
        }

    def fingerprint(self, split: str) -> Any:
        """Size and time of the files."""
        paths = sorted(self._folder.glob(f"{FILES[split]}-*.gz"))
        return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


class _Examples(Sequence[Example]):
    """Examples of a split; images are read at the first access, so not if a cache has them."""

    def __init__(self, path: Path, labels: np.ndarray):
        self._path, self._labels = path, labels

    @cached_property
    def _images(self) -> np.ndarray:
        return _array(self._path, 3)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: Any) -> Any:
        return Example(self._images[index], int(self._labels[index]))


def open_fashion_mnist(config: ConfigDict) -> Source:
    """The authors' files, where they are; else the set of TFDS.

    Raises:
        InputError: neither is there.
    """
    if (_folder(config) / "train-images-idx3-ubyte.gz").is_file():
        return FashionMnist(config)
    from gini_jax.data.tfds import Tfds

    try:
        return Tfds(config)  # type: ignore[return-value]
    except InputError as error:
        raise InputError(
            f"{error}\nOr use the files of its authors: apt-get install dataset-fashion-mnist, or "
            "their folder as --config.dataset.data_dir"
        ) from error


def _folder(config: ConfigDict) -> Path:
    return storage_path("dataset.data_dir", config.data_dir) if config.data_dir else INSTALLED


def _array(path: Path, axes: int) -> np.ndarray:
    """A file in the IDX format: 0, 0, 8 (bytes), the number of axes, their lengths, the values."""
    try:
        content = gzip.decompress(path.read_bytes())
        start = 4 + 4 * axes
        shape = tuple(int(x) for x in np.frombuffer(content[4:start], ">u4"))
        if content[:4] != bytes([0, 0, 8, axes]):
            raise ValueError("it is not in the IDX format")
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); install it again") from error
