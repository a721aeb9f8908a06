"""Folders of images, one per class: `config.dataset.name = "folder"`."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from gini_jax.data.cache import on_this_machine
from gini_jax.data.images import decode
from gini_jax.data.sampling import stratified
from gini_jax.data.source import Example, refuse_size
from gini_jax.errors import InputError
from gini_jax.storage import storage_path


class Folder:
    """Images in class folders; see `source.Source`.

    Either `train/` and `test/` (and `val/`, if there is one) with class folders below them; or
    class folders alone, which are then split class by class: `test_size` and `val_size` images in
    all, drawn with `val_seed`. Hidden files and folders and extensions unknown to Pillow are
    ignored.

    A folder in a bucket is copied to this machine first.

    Args:
        config: `config.dataset`: `data_dir`, `test_split`, `test_size`, `val_size`, `val_seed`,
            `image_size` and `skip_damaged`.

    Raises:
        InputError: the folder is missing or has no class folders, a class has no images to train
            on or differs between splits, or an image cannot be read and `skip_damaged` is off.
    """

    superclass_names: tuple[str, ...] = ()
    image_shape = (None, None)
    splits: dict[str, list[Example]]

    def __init__(self, config: ConfigDict):
        root = on_this_machine(storage_path("dataset.data_dir", config.data_dir))
        self.name = root.resolve().name
        if not config.data_dir or not root.is_dir():
            raise InputError(
                f"dataset.data_dir={config.data_dir!r} is not a folder; give one with a folder "
                "of images per class, or with such folders in train/ and test/"
            )
        if (root / "train").is_dir():
            self._read_splits(root, config.test_split)
            refuse_size(config, "test_size", f"{root}")
            if "val" in self.splits:
                refuse_size(config, "val_size", f"{root}")
        else:
            self._divide(root, config)
        present = {self.class_names[example.label] for example in self.splits["train"]}
        if empty := sorted(set(self.class_names) - present):
            raise InputError(
                f"{root} has no training images of {empty[:5]}; add some, or remove the folders"
            )
        if config.skip_damaged:
            self.splits = {split: _readable(e, split) for split, e in self.splits.items()}

    def fingerprint(self, split: str) -> Any:
        """Class, path, size and time of each file."""
        stats = [(x, x.image.stat()) for x in self.splits[split]]  # type: ignore[union-attr]
        return [[x.label, repr(x.image), s.st_size, s.st_mtime_ns] for x, s in stats]

    def _read_splits(self, root: Path, test_split: str) -> None:
        self.class_names = _classes(root / "train")
        found = [name for name in ("train", "val", test_split) if (root / name).is_dir()]
        if test_split not in found:
            raise InputError(
                f"{root} has train/, but no {test_split}/; create it, name another folder with "
                f"--config.dataset.test_split, or put the class folders directly into {root}"
            )
        for name in found:
            if stray := sorted(set(_classes(root / name)) - set(self.class_names)):
                raise InputError(
                    f"{root / name} has classes that train/ lacks: {stray[:5]}; rename or remove "
                    "their folders"
                )
        self.splits = {name: _examples(root / name, self.class_names) for name in found}

    def _divide(self, root: Path, config: ConfigDict) -> None:
        """Divides each class in the same proportions, so that every split has its share of it."""
        self.class_names = _classes(root)
        examples = _examples(root, self.class_names)
        labels = np.array([example.label for example in examples])
        sizes = {config.test_split: config.test_size, "val": config.val_size}
        rows = stratified(labels, sizes, config.val_seed)
        self.splits = {split: [examples[i] for i in index] for split, index in rows.items()}
        if not config.test_size:
            raise InputError(
                f"{root} has {len(examples)} images and no test/; set --config.dataset.test_size "
                f"to the number of images to test on, such as {max(1, len(examples) // 5)}"
            )
        if not self.splits["val"]:
            del self.splits["val"]


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."))
    if len(names) < 2:
        raise InputError(
            f"{folder} has {len(names)} class folders; put the images of each of two "
            "or more classes into a folder of its own"
        )
    return names


def _examples(folder: Path, classes: tuple[str, ...]) -> list[Example]:
    endings = set(Image.registered_extensions())
    examples = [
        Example(path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in endings
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not examples:
        raise InputError(
            f"{folder} has no images in its class folders; known extensions: .jpg, .png, .webp, ..."
        )
    return examples


def _readable(examples: list[Example], split: str) -> list[Example]:
    """The examples that can be read; the others are named."""
    kept, damaged = [], []
    for example in examples:
        try:
            decode(example.image)
            kept.append(example)
        except Exception as error:
            damaged.append(f"  {example.image!s} ({str(error).splitlines()[0][:100]})")
    if damaged:
        print(f"{split}: {len(damaged)} damaged images skipped:\n" + "\n".join(damaged[:20]))
    return kept
