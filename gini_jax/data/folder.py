"""Folders of images, one per class: `config.dataset.name = "folder"`."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from gini_jax.data.cache import on_this_machine
from gini_jax.data.images import decode
from gini_jax.data.sampling import stratified
from gini_jax.data.source import VALIDATION, Example, fifth, refuse_size
from gini_jax.errors import InputError, first_line
from gini_jax.storage import printable, storage_path

# Names of the folders of splits, in any case.
TRAIN, VAL = ("train", "training"), (*VALIDATION, "valid", "dev")


class Folder:
    """Images in class folders; see `source.Source`.

    Either `train/` and `test/` (and `val/`, `valid/`, `validation/` or `dev/`, if there is one)
    with class folders below them; or class folders alone, which are then split class by class:
    `test_size` (0: a fifth) and `val_size` images in all, ranked by a hash of `val_seed` and their
    paths. Links to folders are followed. Hidden files and folders are ignored; what else is left
    out is printed.

    A folder in a bucket is copied to this machine first.

    Args:
        config: `config.dataset`: `data_dir`, `test_split`, `test_size`, `val_size`, `val_seed`,
            `image_size` and `skip_damaged`.

    Raises:
        InputError: the folder is missing or has no class folders, a class has no images to train
            on or differs between splits, or an image cannot be read and `skip_damaged` is off.
    """

    superclass_names: tuple[str, ...] = ()
    splits: dict[str, list[Example]]

    skips_damaged = True  # if `dataset.skip_damaged` says so

    def __init__(self, config: ConfigDict):
        root = on_this_machine(storage_path("dataset.data_dir", config.data_dir))
        self._root, self.name = root, root.resolve().name
        if not config.data_dir or not root.is_dir():
            raise InputError(
                f"dataset.data_dir={config.data_dir!r} is not a folder; give one with a folder "
                "of images per class, or with such folders in train/ and test/"
            )
        folders = _split_folders(root, config.test_split)
        if "train" in folders:
            self._read_splits(root, folders, config)
        else:
            self._divide(_images_of(root, config), config, (config.test_split, "val"))
        if config.skip_damaged:
            self.splits = {split: _readable(e, split) for split, e in self.splits.items()}
        self._check_complete()
        self.image_shape = (None, None) if config.image_size else self._one_size()

    def fingerprint(self, split: str) -> Any:
        """Class, path, size and time of each file."""
        stats = [(x, x.image.stat()) for x in self.splits[split]]  # type: ignore[union-attr]
        return [[x.label, repr(x.image), s.st_size, s.st_mtime_ns] for x, s in stats]

    def _read_splits(self, root: Path, folders: dict[str, Path], config: ConfigDict) -> None:
        if config.test_split not in folders:
            raise InputError(
                f"{root} has {folders['train'].name}/, but no {config.test_split}/; create it, "
                "name another folder with --config.dataset.test_split, or put the class folders "
                f"directly into {root}"
            )
        others = {path.name for path in root.iterdir() if path.is_dir() and path.name[0] != "."}
        if left_out := sorted(others - {path.name for path in folders.values()}):
            print(f"{root}: left out, because they are no split: {', '.join(left_out)}")
        refuse_size(config, "test_size", f"{root}")
        if "val" in folders:
            refuse_size(config, "val_size", f"{root}")
        found = {split: _images_of(folder, config) for split, folder in folders.items()}
        classes = tuple(found["train"])
        for split, images in found.items():
            if stray := sorted(set(images) - set(classes)):
                raise InputError(
                    f"{folders[split]} has classes that train/ lacks: {stray[:5]}; rename or "
                    "remove their folders"
                )
        self._divide(found["train"], config, ("val",) if "val" not in found else ())
        self.splits |= {
            split: _examples(images, classes) for split, images in found.items() if split != "train"
        }

    def _divide(
        self, images: dict[str, list[Path]], config: ConfigDict, parts: tuple[str, ...]
    ) -> None:
        """Divides each class in the same proportions, so that every split has its part of it."""
        self.class_names = tuple(images)
        examples = _examples(images, self.class_names)
        labels = np.array([example.label for example in examples])
        wanted = {config.test_split: 0, "val": config.val_size}
        if config.test_split in parts:
            wanted[config.test_split] = fifth(len(examples), config, f"{self._root}")
        sizes = {part: wanted[part] for part in parts if wanted[part]}
        keys = [os.path.relpath(str(example.image), self._root) for example in examples]
        rows = stratified(labels, sizes, config.val_seed, keys)
        self.splits = {split: [examples[i] for i in index] for split, index in rows.items()}

    def _check_complete(self) -> None:
        present = {self.class_names[example.label] for example in self.splits["train"]}
        if empty := sorted(set(self.class_names) - present):
            raise InputError(
                f"{self._root} has no training images of {empty[:5]} that can be read; add some, "
                "or remove the folders"
            )
        if empty := [split for split, examples in self.splits.items() if not examples]:
            raise InputError(f"{self._root} has no {empty[0]} images that can be read; add some")

    def _one_size(self) -> tuple[int | None, int | None]:
        """Height and width of the images if all have the same; only their headers are read."""
        sizes = set()
        for example in (example for split in self.splits.values() for example in split):
            try:
                with Image.open(str(example.image)) as image:
                    turned = image.getexif().get(ImageOps.ExifTags.Base.Orientation, 1) >= 5
                    sizes.add(image.size if turned else image.size[::-1])
            except Exception:  # reported when it is decoded
                continue
            if len(sizes) > 1:
                return (None, None)
        if len(sizes) != 1:
            return (None, None)
        ((height, width),) = sizes
        if height == width:
            print(f"{self._root}: all images are {height} x {width}, which is taken as image_size")
        return height, width


def _split_folders(root: Path, test_split: str) -> dict[str, Path]:
    """The folders of splits, by split.

    Raises:
        InputError: two folders could be the same split.
    """
    tested = test_split.lower()
    names = {"train": TRAIN, "val": tuple(x for x in VAL if x != tested), test_split: (tested,)}
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        for split, known in names.items():
            if path.name.lower() in known and path.is_dir():
                if split in found:
                    raise InputError(
                        f"{root} has {found[split].name}/ and {path.name}/, and both could be the "
                        f"{split} split; remove or rename one of them"
                    )
                found[split] = path
    return found


def _images_of(folder: Path, config: ConfigDict) -> dict[str, list[Path]]:
    """The image files of each class, by name; what is left out is printed.

    Raises:
        InputError: there are fewer than two classes, no images, or links that lead nowhere.
    """
    endings, left_out = set(Image.registered_extensions()), Counter[str]()
    classes, dangling = {}, []
    here = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [path for path in here if path.is_dir()]
    if len(folders) < 2:
        raise InputError(
            f"{folder} has {len(folders)} class folders; put the images of each of two "
            "or more classes into a folder of its own"
        )
    for path in folders:
        files = sorted(_files(path))
        left_out.update(x.suffix or x.name for x in files if x.suffix.lower() not in endings)
        images = [x for x in files if x.suffix.lower() in endings]
        dangling += [x for x in images if not x.exists()]
        classes[printable(path.name)] = [x for x in images if x.exists()]
    if dangling and not config.skip_damaged:
        raise InputError(
            f"{dangling[0]} is a link that leads nowhere ({len(dangling)} of them in {folder}); "
            "mend or remove them, or skip them with --config.dataset.skip_damaged=True"
        )
    if not any(classes.values()):
        raise InputError(
            f"{folder} has no images in its class folders; known extensions: .jpg, .png, .webp, ..."
        )
    stray = [x for x in here if not x.is_dir() and x.suffix.lower() in endings]
    notes = [f"{len(stray)} images beside the class folders, such as {x.name}" for x in stray[:1]]
    notes += [f"{n} files {ending}" for ending, n in left_out.most_common(5)]
    notes += [f"{len(dangling)} links that lead nowhere, such as {x}" for x in dangling[:1]]
    found = ", ".join(f"{name} {len(images)}" for name, images in list(classes.items())[:10])
    more = f" and {len(classes) - 10} more" if len(classes) > 10 else ""
    print(f"{folder}: {len(classes)} classes with their images: {found}{more}")
    if notes:
        print(f"{folder}: left out: {'; '.join(notes)}")
    return classes


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, through links to folders; each folder once, no hidden ones."""
    seen = set()
    for here, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            below.clear()  # a link to a folder above itself
            continue
        seen.add(real)
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (Path(here) / name for name in names if not name.startswith("."))


def _examples(images: dict[str, list[Path]], classes: tuple[str, ...]) -> list[Example]:
    return [
        Example(path, label) for label, name in enumerate(classes) for path in images.get(name, ())
    ]


def _readable(examples: list[Example], split: str) -> list[Example]:
    """The examples that can be read; the others are named."""
    kept, damaged = [], []
    for example in examples:
        try:
            decode(example.image)
            kept.append(example)
        except Exception as error:
            damaged.append(f"  {example.image!s} ({first_line(error, 100)})")
    if damaged:
        print(f"{split}: {len(damaged)} damaged images skipped:\n" + "\n".join(damaged[:20]))
    return kept
