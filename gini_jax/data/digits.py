"""The 8x8 digits that scikit-learn ships: the embedded default."""

import importlib.metadata
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from gini_jax.data.source import Example
from gini_jax.errors import InputError

SIZES = {"train": 1197, "val": 200, "test": 400}


class Digits:
    """1,797 grey images of ten classes, in stratified splits of its own; see `source.Source`."""

    name = "digits"
    class_names = tuple("0123456789")
    superclass_names = ()
    image_shape = (8, 8)

    def __init__(self, config: ConfigDict):
        if config.val_size or config.test_split != "test":
            raise InputError(
                f"dataset.val_size={config.val_size}, test_split={config.test_split!r}: digits has "
                "its own splits; leave both out"
            )
        self.splits = {split: _Examples(split) for split in SIZES}

    def fingerprint(self, split: str) -> Any:
        """The version of scikit-learn, and the split."""
        return ["digits", importlib.metadata.version("scikit-learn"), split]


class _Examples(Sequence[Example]):
    """Examples of a split; scikit-learn is imported at the first access."""

    def __init__(self, split: str):
        self._split = split

    def __len__(self) -> int:
        return SIZES[self._split]

    def __getitem__(self, index: Any) -> Any:
        images, labels = _load_splits()[self._split]
        return Example(images[index], int(labels[index]))


@cache
def _load_splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=SIZES["test"], stratify=labels, random_state=0
    )
    train, val = train_test_split(
        rest, test_size=SIZES["val"], stratify=labels[rest], random_state=0
    )
    parts = {"train": train, "val": val, "test": test}
    return {name: (images[part], labels[part]) for name, part in parts.items()}
