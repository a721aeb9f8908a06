"""Image classification sets of TFDS, read in the format in which they were prepared."""

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gini_jax.data.cache import exclusive_lock, on_this_machine
from gini_jax.data.source import Example, own_validation
from gini_jax.errors import InputError, unknown_name
from gini_jax.storage import storage_path

_RANDOM_ACCESS = {"array_record", "parquet"}  # TFDS reads these without TensorFlow


class Tfds:
    """A TFDS data set; see `source.Source`.

    Args:
        config: `config.dataset`: `name`, `data_dir` and `test_split`. If no folder is given, TFDS
            may download the set.

    Raises:
        InputError: the set is unknown or missing, or is not one for image classification.
    """

    def __init__(self, config: ConfigDict):
        self.builder = _find(config.name, config.data_dir, config.test_split)
        features = self.builder.info.features
        self.name = self.builder.info.full_name
        self.class_names = tuple(features["label"].names)
        groups = features["coarse_label"].names if "coarse_label" in features else ()
        self.superclass_names = tuple(groups)
        self.image_shape = tuple(features["image"].shape[:2])
        splits = self.builder.info.splits
        self._split_of = {name: name for name in splits}
        if own := own_validation(splits, config, self.name):
            self._split_of["val"] = own
        self.splits = {
            name: _Examples(self.builder, there) for name, there in self._split_of.items()
        }

    def fingerprint(self, split: str) -> Any:
        """Names and versions, and the path, size and time of each of the split's files."""
        files = []
        for path in self.builder.info.splits[self._split_of[split]].filepaths:
            status = os.stat(path) if os.path.exists(path) else None
            stamp = [status.st_size, status.st_mtime_ns] if status else []
            files.append([os.path.abspath(path), *stamp])
        return {"name": self.name, "split": split, "files": files}


class _Examples(Sequence[Example]):
    """Examples of a split, with images still encoded; the files are opened at the first access."""

    def __init__(self, builder: Any, split: str):
        self._builder, self._split = builder, split
        self._source: Any = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._builder.info.splits[self._split].num_examples

    def __getitem__(self, index: Any) -> Any:
        with self._lock:
            if self._source is None:
                self._source = _open(self._builder, self._split)
        example = self._source[index]
        return Example(
            bytes(example["image"]), int(example["label"]), int(example.get("coarse_label", -1))
        )


class _InOrder:
    """Examples of a format without random access; they must be requested roughly in order."""

    def __init__(self, examples: Iterator[Any]):
        self._examples, self._next = examples, 0
        self._ahead: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> Any:
        with self._lock:
            while index >= self._next:
                self._ahead[self._next] = next(self._examples)
                self._next += 1
            return self._ahead[index] if index == 0 else self._ahead.pop(index)


def _open(builder: Any, split: str) -> Any:
    """Random access to the examples of a split as dictionaries, images still encoded."""
    import tensorflow_datasets as tfds

    encoded = {"image": tfds.decode.SkipDecoding()}
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if formats & _RANDOM_ACCESS:
        return builder.as_data_source(split=split, decoders=encoded)
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        name, folder = builder.info.full_name.rpartition("/")[0], str(builder.data_dir)
        folder = folder.partition(f"/{name}/")[0]
        raise InputError(
            f"{name} in {folder!r} was prepared as {' or '.join(sorted(formats))}, which only "
            "TensorFlow can read. For this one decoding: pip install tensorflow-cpu. Or prepare it "
            f"again with\n{how_to_prepare(name, folder)}"
        ) from error
    in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    examples = builder.as_dataset(
        split=split, shuffle_files=False, read_config=in_order, decoders=encoded
    )
    return _InOrder(iter(tfds.as_numpy(examples)))


def _find(name: str, data_dir: str, test_split: str) -> Any:
    """The TFDS builder of a prepared set."""
    import tensorflow_datasets as tfds

    given = data_dir or os.environ.get("TFDS_DATA_DIR", "")
    own = name.partition("/")[0].partition(":")[0]
    folder = str(on_this_machine(storage_path("dataset.data_dir", given), own)) if given else ""
    prepare = how_to_prepare(name, folder)
    if folder and not Path(folder).is_dir():
        raise InputError(f"data directory {folder!r} does not exist; prepare it with\n{prepare}")
    try:
        builder = tfds.builder(name, data_dir=folder or None)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, AssertionError) as error:
        known = ["digits", *tfds.list_builders(with_community_datasets=False)]
        raise unknown_name("data set", name, known) from error
    if not builder.info.splits:
        if folder:
            raise InputError(f"data set {name!r} is not in {folder!r}; prepare it with\n{prepare}")
        builder = _download(name, prepare)
    _check(builder, name, test_split)
    return builder


def _download(name: str, prepare: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, file_format="array_record")
        print(f"TFDS is downloading {name}; without network access, prepare it with\n{prepare}")
        with exclusive_lock(Path(tempfile.gettempdir()), f"is preparing {name}"):
            builder.download_and_prepare()
        return builder
    except Exception as error:
        raise InputError(
            f"data set {name!r} is not prepared and TFDS could not download it "
            f"({type(error).__name__}: {error}); prepare it with\n{prepare}"
        ) from error


def _check(builder: Any, name: str, test_split: str) -> None:
    import tensorflow_datasets as tfds

    splits, features = builder.info.splits, dict(builder.info.features)
    if "train" not in splits or test_split not in splits:
        raise InputError(
            f"data set {name!r} has splits {sorted(splits)}; it needs train and {test_split}; set "
            "--config.dataset.test_split to one of them"
        )
    if not (
        isinstance(features.get("image"), tfds.features.Image)
        and isinstance(features.get("label"), tfds.features.ClassLabel)
    ):
        raise InputError(
            f"data set {name!r} is not for image classification: it has {sorted(features)}, but "
            "needs an image and a class label; set --config.dataset.name to another set"
        )


def how_to_prepare(name: str, folder: str) -> str:
    """The commands that prepare a set, and where it goes."""
    return (
        "    pip install tensorflow-datasets tensorflow array_record importlib_resources\n"
        f"    tfds build {name} --data_dir={folder or 'DIR'} --file_format=array_record\n"
        "on a machine with network access, then give that folder as --config.dataset.data_dir."
    )
