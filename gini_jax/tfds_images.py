"""Image classification sets of TFDS: found, decoded once, and mapped from the cache."""

import contextlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from gini_jax.errors import InputError, unknown_name
from gini_jax.workdir import write

_CHUNK = 1 << 26  # bytes that a thread sums up at a time
_RANDOM_ACCESS = {"array_record", "parquet"}  # TFDS reads these without TensorFlow
_AT_A_TIME = 1024  # examples in the decoding threads' queue


def find(name: str, data_dir: str, test_split: str = "test") -> Any:
    """The TFDS builder of a prepared set; where no folder is given, TFDS may download it.

    Args:
        name: of the set.
        data_dir: where TFDS keeps its sets; `TFDS_DATA_DIR`, or else TFDS's default, if "".
        test_split: name of the split that is tested on.

    Raises:
        InputError: the set is unknown, is not there, or does not classify images.
    """
    import tensorflow_datasets as tfds

    folder = data_dir or os.environ.get("TFDS_DATA_DIR", "")
    prepare = how_to_prepare(name, folder)
    if folder and not Path(folder).expanduser().is_dir():
        raise InputError(f"data directory {folder!r} does not exist; prepare it with\n{prepare}")
    try:
        builder = tfds.builder(name, data_dir=folder or None)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, AssertionError) as error:
        known = ["digits", *tfds.list_builders(with_community_datasets=False)]
        raise unknown_name("data set", name, known) from error
    if not builder.info.splits:
        if folder:
            raise InputError(f"data set {name!r} is not in {folder!r}; prepare it with\n{prepare}")
        try:
            builder = tfds.builder(name, file_format="array_record")
            print(f"TFDS downloads {name}; where there is no network, prepare it with\n{prepare}")
            with _alone(Path(tempfile.gettempdir()), f"prepares {name}"):
                builder.download_and_prepare()
        except Exception as error:
            raise InputError(
                f"data set {name!r} is not prepared and TFDS could not download it "
                f"({type(error).__name__}: {error}); prepare it with\n{prepare}"
            ) from error
    splits, features = builder.info.splits, dict(builder.info.features)
    if "train" not in splits or test_split not in splits:
        raise InputError(
            f"data set {name!r} has splits {sorted(splits)}; it needs train and {test_split}: set "
            "--config.dataset.test_split"
        )
    if not (
        isinstance(features.get("image"), tfds.features.Image)
        and isinstance(features.get("label"), tfds.features.ClassLabel)
    ):
        raise InputError(
            f"data set {name!r} does not classify images: it has {sorted(features)}, and needs an "
            "image and a label that is a class"
        )
    if (channels := builder.info.features["image"].shape[-1]) not in (1, 3):
        raise InputError(f"images of {name} have {channels} channels; they must have 1 or 3")
    return builder


def how_to_prepare(name: str, folder: str) -> str:
    """The commands that prepare a set, and where it goes."""
    return (
        "    pip install tensorflow-datasets tensorflow array_record importlib_resources\n"
        f"    tfds build {name} --data_dir={folder or 'DIR'} --file_format=array_record\n"
        "on a machine with network, then give that folder as --config.dataset.data_dir."
    )


def load(
    builder: Any, split: str, image_size: int, folder: Path
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """A split, mapped from the cache, which is made first where it is missing or damaged.

    Several processes of a machine share the cache: one decodes, the others wait for it.

    Args:
        builder: from `find`.
        split: of TFDS, such as `train`.
        image_size: images are stored as squares with room for crops of this size; 0: as they are.
        folder: of the cache.

    Returns:
        Images `[N, H, W, 3]` uint8 and labels `[N]` int32, both mapped from files; and the
        superclass of each class, empty where the set has none.

    Raises:
        InputError: the images cannot be read, or the cache cannot be written.
    """
    cached, _ = _read(builder, split, folder)
    if cached:
        return cached
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, f"fills {folder}"):
            cached, wrong = _read(builder, split, folder)  # by another process meanwhile
            if cached:
                return cached
            if wrong:
                print(f"the cache of {split} in {folder} cannot be used ({wrong}); decoding again")
            _decode(builder, split, image_size, folder)
    except OSError as error:
        raise InputError(
            f"the cache {folder} cannot be filled ({error}); make room there, or set "
            "XDG_CACHE_HOME to another folder"
        ) from error
    cached, wrong = _read(builder, split, folder)
    if not cached:
        raise InputError(f"{folder} was written and reads back otherwise ({wrong})")
    return cached


@contextlib.contextmanager
def _alone(folder: Path, what: str) -> Iterator[None]:
    """Held by one process of a machine at a time."""
    lock = FileLock(folder / f".gini_jax-{zlib.crc32(what.encode()):08x}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another process {what}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _source_of(builder: Any, split: str) -> dict[str, Any]:
    """What a cache must have been made of."""
    info = builder.info.splits[split]
    return {
        "name": builder.name,
        "version": str(builder.version),
        "split": split,
        "examples": info.num_examples,
        "bytes": info.num_bytes,
    }


def _read(builder: Any, split: str, folder: Path) -> tuple[Any, str]:
    """What the cache holds, or None and what is wrong with it; nothing where it is not there.

    Files that are of the size and time in the manifest are taken as they are; others are read whole
    and must have its checksum.
    """
    manifest, paths = folder / f"{split}.json", _paths(folder, split)
    if not manifest.exists():
        partial_files = any(folder.glob(f"{split}-*.partial"))
        return None, "half written" if partial_files else ""
    try:
        written = json.loads(manifest.read_text())
        if (source := written.get("source")) != _source_of(builder, split):
            return None, f"it was made of {source}"
        for path in paths:
            file = written["files"][path.name]
            if file["stamp"] != _stamp(path) and file["checksum"] != _checksum(path):
                return None, f"{path.name} is not as it was written"
        images, labels = (np.load(path, mmap_mode="r") for path in paths)
        return (images, labels, tuple(written["superclass_of"])), ""
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        return None, str(error)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _paths(folder: Path, split: str) -> list[Path]:
    return [folder / f"{split}-images.npy", folder / f"{split}-labels.npy"]


def _checksum(path: Path) -> int:
    """CRC-32 of the CRC-32s of a file's pieces, which are taken in parallel."""
    data = np.memmap(path, np.uint8, "r")
    pieces = (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return zlib.crc32(np.array(list(pool.map(zlib.crc32, pieces)), np.uint32).tobytes())


def _decode(builder: Any, split: str, image_size: int, folder: Path) -> None:
    """Fills the cache with a split: partial files first, the manifest last."""
    paths = _paths(folder, split)
    partial_paths = [path.with_suffix(".partial") for path in paths]
    for path in (folder / f"{split}.json", *paths, *partial_paths):
        path.unlink(missing_ok=True)
    first = _example(builder, 0, next(_loaders(builder, split)))
    total = builder.info.splits[split].num_examples
    shape = (total, *_fit(first["image"], image_size).shape)
    if (free := shutil.disk_usage(folder).free) < np.prod(shape):
        raise OSError(f"it needs {np.prod(shape) / 2**20:,.0f} MiB of {free / 2**20:,.0f} free")
    images = np.lib.format.open_memmap(partial_paths[0], "w+", np.uint8, shape)
    labels = np.lib.format.open_memmap(partial_paths[1], "w+", np.int32, (total,))
    groups = np.zeros(total, np.int32)

    def store(item: tuple[int, Callable[[], Any]]) -> None:
        index, load = item
        example = _example(builder, index, load)
        image = _fit(example["image"], image_size)
        if image.shape != shape[1:]:
            raise InputError(
                f"images of {builder.name} have many sizes, {image.shape} and {shape[1:]} among "
                "them; set --config.dataset.image_size, such as 224"
            )
        images[index], labels[index] = image, example["label"]
        groups[index] = example.get("coarse_label", 0)

    items = enumerate(_loaders(builder, split))
    bar = tqdm(total=total, desc=f"decoding {builder.name} {split}", unit=" images", mininterval=1)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(items, _AT_A_TIME)):
            for _ in pool.map(store, chunk):
                bar.update()
    superclass_of = []
    if "coarse_label" in builder.info.features:
        of_class = dict(zip(labels.tolist(), groups.tolist(), strict=True))
        superclass_of = [of_class.get(k, -1) for k in range(max(of_class) + 1)]
    images.flush()
    labels.flush()
    for before, after in zip(partial_paths, paths, strict=True):
        before.replace(after)
    manifest = {
        "source": _source_of(builder, split),
        "files": {
            path.name: {"stamp": _stamp(path), "checksum": _checksum(path)} for path in paths
        },
        "superclass_of": superclass_of,
    }
    write(folder / f"{split}.json", json.dumps(manifest, indent=2) + "\n")


def _example(builder: Any, index: int, load: Callable[[], Any]) -> Any:
    """An example; whatever reading it raises becomes one error that names it."""
    try:
        return load()
    except Exception as error:
        raise InputError(
            f"example {index} of {builder.name} cannot be read "
            f"({str(error).splitlines()[0][:200]}); prepare the set again"
        ) from error


def _loaders(builder: Any, split: str) -> Iterator[Callable[[], Any]]:
    """A function for each example of a split, in order, that gives it decoded."""
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if not formats & _RANDOM_ACCESS:
        return _loaders_by_tensorflow(builder, split, " or ".join(sorted(formats)))
    source = builder.as_data_source(split=split)
    return (partial(source.__getitem__, index) for index in range(len(source)))


def _loaders_by_tensorflow(
    builder: Any, split: str, file_format: str
) -> Iterator[Callable[[], Any]]:
    import tensorflow_datasets as tfds

    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        name, folder = builder.info.full_name.rpartition("/")[0], str(builder.data_dir)
        folder = folder.partition(f"/{name}/")[0]
        raise InputError(
            f"{name} in {folder!r} was prepared as {file_format}, which only TensorFlow reads: "
            "pip install tensorflow-cpu, once, for the decoding; or prepare it again with\n"
            f"{how_to_prepare(name, folder)}"
        ) from error
    in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    examples = builder.as_dataset(split=split, shuffle_files=False, read_config=in_order)
    return (partial(dict, example) for example in tfds.as_numpy(examples))


def stored_size(image_size: int) -> int:
    """Side of the stored squares, with room for crops of `image_size`; 0 for 0.

    Example:
        >>> stored_size(224)
        256
    """
    return image_size + image_size // 7


def _fit(image: np.ndarray, image_size: int) -> np.ndarray:
    """RGB, and square with room for a crop of `image_size`, if that is set."""
    if image.shape[-1] == 1:
        image = np.repeat(image, 3, axis=-1)
    if not image_size:
        return image
    side = stored_size(image_size)
    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
    return resized[top : top + side, left : left + side]
