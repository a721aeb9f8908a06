"""Decoded splits on disk: written once, to a folder renamed when complete, then memory-mapped."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from gini_jax.data.images import DECODING, decode, fit
from gini_jax.data.source import Example, Source, check_example
from gini_jax.errors import InputError, first_line
from gini_jax.storage import default_folder, download, is_remote, reading

_AT_A_TIME = 1024  # examples in the queue of the decoding threads


class Decoded(NamedTuple):
    """A split as it lies in the cache.

    Attributes:
        images: `[N, H, W, 3]` uint8, mapped from a file.
        labels: `[N]` int32, likewise.
        superclass_of: the superclass of each class, empty if the set has none.
        digest: a hash of all pixels and labels, which tells whether the data are the same.
    """

    images: np.ndarray
    labels: np.ndarray
    superclass_of: tuple[int, ...]
    digest: str


def short_name(text: str) -> str:
    """A file name for a text: the text itself or, if it is long, its end and a hash.

    Examples:
        >>> short_name("gs://bucket/images")
        'gs_bucket_images'
        >>> len(short_name("/data" * 100))
        49
    """
    plain = re.sub(r"[^\w.+-]+", "_", text, flags=re.ASCII)
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return plain if len(plain) <= 40 else f"{plain[-40:]}-{digest}"


def decoded(source: Source, split: str, image_size: int, folder: Path) -> Decoded:
    """A split, mapped from the cache; if it is missing there or damaged, it is decoded first.

    Processes on one machine share the cache: one decodes, the others wait for it.

    Args:
        source: the data set.
        split: one of its splits.
        image_size: images are stored as squares with room for crops of this size; 0: unchanged.
        folder: the folder of the cache.

    Returns:
        Images and labels, mapped from files.

    Raises:
        InputError: an image cannot be read, or the cache cannot be written.
    """
    made_of = {
        "source": source.fingerprint(split),
        "image_size": image_size,
        "decoding": DECODING,
    }
    kind = type(source)
    if not kind.__module__.startswith("gini_jax."):  # two plugins may have the same name
        made_of["class"] = f"{kind.__module__}:{kind.__qualname__}"
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    entry = folder / f"{short_name(source.name)}-{split}-{digest}"
    found, _ = _read(entry)
    if found:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder, f"is filling {entry}"):
            found, wrong = _read(entry)  # another process may have decoded it meanwhile
            if not found:
                if wrong:
                    print(f"the cache {entry} cannot be used ({wrong}); decoding again")
                _make(source, split, image_size, entry)
    except OSError as error:
        raise InputError(
            f"the cache {entry} cannot be filled ({error}); make room there, or set "
            "XDG_CACHE_HOME to another folder"
        ) from error
    found, wrong = _read(entry)
    if not found:
        raise InputError(
            f"{entry} was written but cannot be read back ({wrong}); check the disk, or set "
            "XDG_CACHE_HOME to another folder"
        )
    return found


def on_this_machine(folder: Path, part: str = "") -> Path:
    """A folder of images or of prepared sets; one in a bucket is first copied to the cache.

    Args:
        folder: on this machine, which is returned as it is, or in a bucket.
        part: what to copy of it; everything by default.

    Raises:
        InputError: the bucket cannot be read, or there is no such folder in it.
    """
    if not is_remote(folder):
        return folder
    there = folder / part if part else folder
    copy = default_folder() / "buckets" / short_name(str(folder))
    with reading(folder):
        try:
            next(there.iterdir())
        except (FileNotFoundError, StopIteration) as error:
            text = f"{there} is not there; check the name, or upload the folder"
            raise InputError(text) from error
    print(f"copying {there} to {copy}")
    copy.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(copy.parent, f"is copying {there}"), reading(folder):
        download(there, copy / part)
    return copy


@contextlib.contextmanager
def exclusive_lock(folder: Path, what: str) -> Iterator[None]:
    """A lock that one process of a machine holds at a time; the others say what they wait for."""
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


def _read(entry: Path) -> tuple[Decoded | None, str]:
    """What a cache entry holds; or None and the reason ("" if it does not exist)."""
    if not entry.exists():
        return None, ""
    try:
        about = json.loads((entry / "about.json").read_text())
        images = np.load(entry / "images.npy", mmap_mode="r")
        labels = np.load(entry / "labels.npy", mmap_mode="r")
        if len(images) != about["examples"] or len(labels) != about["examples"]:
            return None, "its files do not fit together"
        return Decoded(images, labels, tuple(about["superclass_of"]), about["digest"]), ""
    except Exception as error:  # a damaged file can raise anything
        return None, first_line(error)


def _make(source: Source, split: str, image_size: int, entry: Path) -> None:
    """Decodes a split into a temporary folder, which becomes the entry when it is complete."""
    examples = source.splits[split]
    total = len(examples)
    partial = entry.with_name(f"{entry.name}.partial")
    for old in (partial, entry):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    first = fit(_pixels(source, 0, examples[0]), image_size)
    shape = (total, *first.shape)
    if (free := shutil.disk_usage(partial).free) < np.prod(shape):
        needed = f"it needs {np.prod(shape) / 2**20:,.0f} MiB"
        raise OSError(f"{needed}, but only {free / 2**20:,.0f} MiB are free")
    images = np.lib.format.open_memmap(partial / "images.npy", "w+", np.uint8, shape)
    labels = np.lib.format.open_memmap(partial / "labels.npy", "w+", np.int32, (total,))
    groups, checksums = np.zeros(total, np.int32), np.zeros(total, np.uint32)

    def store(index: int) -> None:
        example = _example(source, examples, index)
        image = fit(_pixels(source, index, example), image_size)
        if image.shape != shape[1:]:
            raise InputError(
                f"images of {source.name} differ in size, such as {image.shape} and {shape[1:]}; "
                "set --config.dataset.image_size, such as 224"
            )
        images[index], labels[index], groups[index] = image, example.label, example.superclass
        checksums[index] = zlib.crc32(image.tobytes())

    indices = iter(range(total))
    bar = tqdm(total=total, desc=f"decoding {source.name} {split}", unit=" images", mininterval=1)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(indices, _AT_A_TIME)):
            for _ in pool.map(store, chunk):
                bar.update()
    images.flush()
    labels.flush()
    about = {
        "examples": total,
        "superclass_of": _groups_of_classes(source, labels, groups)
        if source.superclass_names
        else [],
        "digest": hashlib.sha256(checksums.tobytes() + labels.tobytes()).hexdigest()[:16],
        "source": source.fingerprint(split),
    }
    (partial / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    partial.rename(entry)


def _example(source: Source, examples: Any, index: int) -> Example:
    """An example; any exception from reading it becomes one error that names the example."""
    try:
        example = examples[index]
    except Exception as error:
        raise _unreadable(source, index, error) from error
    return check_example(f"data set {source.name}", example)


def _pixels(source: Source, index: int, example: Example) -> np.ndarray:
    try:
        return decode(example.image)
    except Exception as error:
        raise _unreadable(source, index, error, example) from error


def _unreadable(
    source: Source, index: int, error: Exception, example: Example | None = None
) -> InputError:
    path = f", {example.image}," if example and isinstance(example.image, Path) else ""
    reason = first_line(error)
    return InputError(
        f"example {index} of {source.name}{path} cannot be read ({reason}); "
        + (
            "repair or remove it, or skip all that are damaged with "
            "--config.dataset.skip_damaged=True"
            if path and getattr(source, "skips_damaged", False)
            else "mend it, or leave it out of the set"
        )
    )


def _groups_of_classes(source: Source, labels: np.ndarray, groups: np.ndarray) -> list[int]:
    """The superclass of each class; -1 for a class that has no example here.

    Raises:
        InputError: an example names no superclass, or two of a class name different ones.
    """
    number = len(source.superclass_names)
    if (wrong := np.flatnonzero((groups < 0) | (groups >= number))).size:
        raise InputError(
            f"example {wrong[0]} of {source.name} has superclass {groups[wrong[0]]}, but with "
            f"{number} superclass_names it must be 0 to {number - 1}; give each Example one, or "
            "leave superclass_names empty"
        )
    of_class: dict[int, int] = {}
    for label, group in zip(labels.tolist(), groups.tolist(), strict=True):
        if of_class.setdefault(label, group) != group:
            raise InputError(
                f"class {label} of {source.name} has examples of superclass {of_class[label]} and "
                f"of {group}; give all examples of a class the same superclass"
            )
    return [of_class.get(k, -1) for k in range(len(source.class_names))]
