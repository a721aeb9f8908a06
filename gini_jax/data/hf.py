"""Sets of the Hugging Face library `datasets`: `config.dataset.name = "hf:NAME_OR_PATH"`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from gini_jax.data.sampling import stratified
from gini_jax.data.source import Example, fifth, own_validation, refuse_size
from gini_jax.errors import InputError, first_line

INSTALL = 'pip install "datasets>=3"'


class HuggingFace:
    """A set of the hub by its name, or a folder of `save_to_disk`; see `source.Source`.

    The validation split is that of `own_validation`. A set without a test split is divided class by
    class: `test_size` (0: a fifth) and `val_size` images in all, drawn with `val_seed`.

    Args:
        config: `config.dataset`: `name`, `data_dir` (where the hub's files are kept),
            `test_split`, `test_size`, `val_size`, `val_seed`, `image_column` and `label_column`.

    Raises:
        InputError: the library or the set is missing, or its columns are not found.
    """

    superclass_names: tuple[str, ...] = ()
    image_shape = (None, None)

    def __init__(self, config: ConfigDict):
        self.name = config.name.partition(":")[2]
        if not self.name:
            raise InputError(
                f"dataset.name={config.name} names no set; give hf:NAME of one on the hub, such as "
                "hf:beans, or hf:FOLDER of one that was saved with save_to_disk"
            )
        found = _open(self.name, config.data_dir)
        train = found.get("train") or next(iter(found.values()))
        self._image = _column(self.name, train, "image", config.image_column)
        self._label = _column(self.name, train, "label", config.label_column)
        self._number, self.class_names = _classes(self.name, train, self._label)
        self._parts: dict[str, tuple[Any, np.ndarray | None]]
        self._parts = {name: (part, None) for name, part in found.items()}
        if "train" not in found and len(found) > 1:
            raise InputError(f"{config.name} has splits {sorted(found)}, and no train")
        if own := own_validation(found, config, config.name):
            self._parts["val"] = self._parts[own]
        for name in {"train", "val", config.test_split} & set(self._parts):
            self._check_labels(name)
        if config.test_split in found:
            refuse_size(config, "test_size", config.name)
        else:
            self._divide(train, config)
        self.splits = {
            name: _Examples(part.cast_column(self._image, _encoded()), rows, self)
            for name, (part, rows) in self._parts.items()
            if name in ("train", "val", config.test_split)
        }

    def _check_labels(self, split: str) -> None:
        part, _ = self._parts[split]
        known = self.numbers(part)
        if unknown := sorted({str(x) for x in part[self._label] if x not in known})[:5]:
            raise InputError(
                f"split {split} of hf:{self.name} has labels {unknown} that train lacks; remove "
                "these rows, or name another --config.dataset.label_column"
            )

    def _divide(self, train: Any, config: ConfigDict) -> None:
        """Takes the test split, and the validation split if there is none, out of `train`."""
        test_size = fifth(len(train), config, config.name)
        if not test_size + config.val_size < len(train):
            raise InputError(
                f"{config.name} has {len(train)} training images and no split "
                f"{config.test_split!r}; set --config.dataset.test_size to how many of them are "
                f"tested on, such as {max(1, len(train) // 5)}, or name another "
                "--config.dataset.test_split"
            )
        labels = np.array([self._number[x] for x in train[self._label]])
        sizes = {config.test_split: test_size, "val": config.val_size}
        rows = stratified(labels, sizes, config.val_seed, list(map(str, range(len(labels)))))
        self._parts |= {name: (train, index) for name, index in rows.items() if len(index)}

    def fingerprint(self, split: str) -> Any:
        """The library's own fingerprint of the split, the columns and the rows."""
        part, rows = self._parts[split]
        drawn = None if rows is None else rows.tolist()
        return [self.name, split, part._fingerprint, self._image, self._label, drawn]

    def example(self, row: dict[str, Any], numbers: dict[Any, int]) -> Example:
        """A row of a split, with its image still encoded."""
        image = row[self._image]
        return Example(image["bytes"] or Path(image["path"]), numbers[row[self._label]])

    def numbers(self, part: Any) -> dict[Any, int]:
        """The class of each value in a split's column, matched by name, as numbers may differ."""
        names = getattr(part.features[self._label], "names", None)
        if names is None:
            return self._number
        of_name = {name: k for k, name in enumerate(self.class_names)}
        return {-1: -1} | {k: of_name[name] for k, name in enumerate(names) if name in of_name}


class _Examples(Sequence[Example]):
    def __init__(self, part: Any, rows: np.ndarray | None, source: HuggingFace):
        self._part, self._source, self._numbers = part, source, source.numbers(part)
        self._rows = range(len(part)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._source.example(self._part[int(self._rows[index])], self._numbers)


def _encoded() -> Any:
    from datasets import Image

    return Image(decode=False)


def _open(name: str, data_dir: str) -> dict[str, Any]:
    """The splits of a set, by name."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"sets named hf:... need the library datasets: {INSTALL}") from error
    path = Path(name).expanduser()
    try:
        if path.is_dir() and any((path / f).is_file() for f in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(name, cache_dir=data_dir or None)
    except Exception as error:  # the library raises many kinds
        raise InputError(
            f"dataset.name=hf:{name} cannot be opened ({first_line(error)}); give hf: and the name "
            "of a set on the hub, or a folder written by its save_to_disk"
        ) from error
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}


def _column(name: str, part: Any, kind: str, given: str) -> str:
    """The column of images or of labels: the given one, or the only one of its type."""
    from datasets import ClassLabel, Image

    if given:
        if given not in part.column_names:
            raise InputError(
                f"dataset.{kind}_column={given!r}, but hf:{name} has {part.column_names}; set "
                f"--config.dataset.{kind}_column to one of them"
            )
        return given
    wanted = Image if kind == "image" else ClassLabel
    found = [key for key, feature in part.features.items() if isinstance(feature, wanted)]
    if not found and kind in part.column_names:
        found = [kind]
    if len(found) != 1:
        raise InputError(
            f"hf:{name} has the columns {part.column_names}, and {len(found)} that could be the "
            f"{kind}; name it by --config.dataset.{kind}_column"
        )
    return found[0]


def _classes(name: str, train: Any, column: str) -> tuple[dict[Any, int], tuple[str, ...]]:
    """The number of each value of the label's column, and the names of the classes."""
    if isinstance(next(iter(train[column]), None), (list, dict)):
        raise InputError(
            f"column {column!r} of hf:{name} holds lists, but an image needs one class; name "
            "another --config.dataset.label_column"
        )
    names = getattr(train.features[column], "names", None)
    if names is not None:
        return {k: k for k in range(-1, len(names))}, tuple(names)
    values = sorted({x for x in train[column] if x is not None})
    return {value: k for k, value in enumerate(values)}, tuple(map(str, values))
