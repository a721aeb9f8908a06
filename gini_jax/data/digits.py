"""The 8x8 digits that scikit-learn ships: the embedded default."""

from typing import Any

import numpy as np

from gini_jax.data.source import Arrays
from gini_jax.errors import InputError

SIZES = {"train": 1197, "val": 200, "test": 400}


class Digits:
    """1,797 grey images of ten classes, in stratified splits of its own; see `source.Source`."""

    name = "digits"
    class_names = tuple("0123456789")
    superclass_names = ()
    image_shape = (8, 8)

    def __init__(self, config: Any):
        if config.val_size or config.image_size or config.test_split != "test":
            raise InputError(
                f"dataset.val_size={config.val_size}, image_size={config.image_size}, test_split="
                f"{config.test_split!r}: digits has its own splits and size; leave all three out"
            )
        self.splits = _load_splits()

    def fingerprint(self, split: str) -> Any:
        """Never called, because the arrays need no cache."""
        return ["digits", split]


def _load_splits() -> dict[str, Arrays]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=SIZES["test"], stratify=labels, random_state=0
    )
    train, val = train_test_split(
        rest, test_size=SIZES["val"], stratify=labels[rest], random_state=0
    )
    parts = {"train": train, "val": val, "test": test}
    return {name: Arrays(images[part], labels[part]) for name, part in parts.items()}
