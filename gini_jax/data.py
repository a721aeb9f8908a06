"""Image sets as uint8 arrays: the digits of scikit-learn, and any classification set of TFDS."""

import json
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from gini_jax.errors import InputError, unknown_name

DIGITS_SIZES = {"train": 1197, "val": 200, "test": 400}


class Split(NamedTuple):
    """Images `[N, H, W, 3]`, uint8, and their labels `[N]`, int32."""

    images: Any
    labels: Any


@dataclass(frozen=True)
class Dataset:
    """An image set.

    Attributes:
        splits: `train`, `val` (may be empty) and `test`.
        class_names: names of the `K` classes.
        image_size: height and width that the network sees; stored images may be larger.
    """

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    image_size: int

    @property
    def num_classes(self) -> int:
        """`K`."""
        return len(self.class_names)


def load_dataset(config: Any, cache_dir: Path | None = None) -> Dataset:
    """The splits of a data set, decoded.

    Args:
        config: `config.dataset`: `name`, `data_dir`, `val_size`, `val_seed`, `image_size`.
        cache_dir: where decoded TFDS sets are kept; `$XDG_CACHE_HOME/gini_jax` by default.

    Returns:
        The data set; TFDS's training images less `val_size` of them, drawn by `val_seed`, are the
        training split.

    Raises:
        InputError: the set is unknown or not there, or a split is too small.

    Example:
        >>> from gini_jax.config import default_config
        >>> digits = load_dataset(default_config().dataset)
        >>> {name: split.images.shape for name, split in digits.splits.items()}["test"]
        (400, 8, 8, 3)
    """
    if config.name == "digits":
        return _load_digits()
    return _load_tfds(config, cache_dir or _default_cache_dir())


def dataset_shapes(config: Any) -> Dataset:
    """A data set with the shapes of its arrays in their place; nothing is decoded.

    Args:
        config: `config.dataset`.

    Raises:
        InputError: as in `load_dataset`.

    Example:
        >>> from gini_jax.config import default_config
        >>> dataset_shapes(default_config().dataset).splits["train"].images.shape
        (1197, 8, 8, 3)
    """
    if config.name == "digits":
        return _shapes(DIGITS_SIZES, 8, tuple(map(str, range(10))), 8)
    builder = _tfds_builder(config.name, config.data_dir)
    label, image = (builder.info.features[key] for key in ("label", "image"))
    size = config.image_size or image.shape[0]
    if size is None:
        raise InputError(
            f"images of {config.name} have many sizes; set --config.dataset.image_size"
        )
    train, test = (builder.info.splits[split].num_examples for split in ("train", "test"))
    _check_val_size(config, train)
    sizes = {"train": train - config.val_size, "val": config.val_size, "test": test}
    return _shapes(sizes, _stored_size(config.image_size) or size, tuple(label.names), size)


def _shapes(sizes: dict[str, int], stored: int, names: tuple[str, ...], size: int) -> Dataset:
    splits = {
        name: Split(
            jax.ShapeDtypeStruct((n, stored, stored, 3), np.uint8),
            jax.ShapeDtypeStruct((n,), np.int32),
        )
        for name, n in sizes.items()
    }
    return Dataset(splits, names, size)


def epoch_order(seed: int, epoch: int, num_examples: int, batch_size: int) -> np.ndarray:
    """The examples of each batch of an epoch, a pure function of seed and epoch.

    Args:
        seed: the run's seed.
        epoch: the epoch, counted from 0.
        num_examples: size of the training split; the remainder of a batch is left out.
        batch_size: examples in a global batch.

    Returns:
        `[num_examples // batch_size, batch_size]` int32.

    Example:
        >>> sorted(epoch_order(seed=0, epoch=3, num_examples=4, batch_size=2).ravel().tolist())
        [0, 1, 2, 3]
    """
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    steps = num_examples // batch_size
    order = np.asarray(jax.random.permutation(key, num_examples), np.int32)
    return order[: steps * batch_size].reshape(steps, batch_size)


# ---------------------------------------------------------------------------- digits


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=DIGITS_SIZES["test"], stratify=labels, random_state=0
    )
    train, val = train_test_split(
        rest, test_size=DIGITS_SIZES["val"], stratify=labels[rest], random_state=0
    )
    parts = {"train": train, "val": val, "test": test}
    splits = {name: Split(images[part], labels[part]) for name, part in parts.items()}
    return Dataset(splits, tuple(str(name) for name in digits.target_names), image_size=8)


# ---------------------------------------------------------------------------- TFDS


def _load_tfds(config: Any, cache_dir: Path) -> Dataset:
    builder = _tfds_builder(config.name, config.data_dir)
    class_names = tuple(builder.info.features["label"].names)
    folder = cache_dir / f"{config.name}-{builder.version}-{config.image_size or 'native'}"
    train = _cached_split(builder, "train", config.image_size, folder)
    test = _cached_split(builder, "test", config.image_size, folder)
    _check_val_size(config, len(train.labels))
    order = np.random.default_rng(config.val_seed).permutation(len(train.labels))
    val_index, train_index = np.sort(order[: config.val_size]), np.sort(order[config.val_size :])
    splits = {
        "train": Split(train.images[train_index], train.labels[train_index]),
        "val": Split(train.images[val_index], train.labels[val_index]),
        "test": test,
    }
    return Dataset(splits, class_names, config.image_size or train.images.shape[1])


def _check_val_size(config: Any, num_train: int) -> None:
    if config.val_size >= num_train:
        raise InputError(
            f"dataset.val_size={config.val_size} leaves none of the {num_train} training images of "
            f"{config.name}; it must be smaller"
        )


def _tfds_builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    folder = data_dir or os.environ.get("TFDS_DATA_DIR", "")
    prepare = (
        f"    pip install tensorflow importlib_resources\n"
        f"    tfds build {name} --data_dir={folder or 'DIR'} --file_format=array_record\n"
        "on a machine with network, then give that folder as --config.dataset.data_dir."
    )
    if folder and not Path(folder).expanduser().is_dir():
        raise InputError(f"data directory {folder!r} does not exist; prepare it with\n{prepare}")
    try:
        builder = tfds.builder(name, data_dir=folder or None)
    except tfds.core.registered.DatasetNotFoundError as error:
        known = ["digits", *tfds.list_builders(with_community_datasets=False)]
        raise unknown_name("data set", name, known) from error
    if not builder.info.splits:
        if folder:
            raise InputError(f"data set {name!r} is not in {folder!r}; prepare it with\n{prepare}")
        try:
            builder = tfds.builder(name, file_format="array_record")
            builder.download_and_prepare()
        except Exception as error:
            raise InputError(
                f"data set {name!r} is not prepared and TFDS could not download it "
                f"({type(error).__name__}: {error}); prepare it with\n{prepare}"
            ) from error
    missing = {"train", "test"} - set(builder.info.splits)
    if missing or not {"image", "label"} <= set(builder.info.features):
        raise InputError(
            f"data set {name!r} has splits {sorted(builder.info.splits)} and features "
            f"{sorted(builder.info.features)}; it needs train and test, image and label"
        )
    return builder


def _cached_split(builder: Any, split: str, image_size: int, folder: Path) -> Split:
    """A split out of the cache, which is made first where it is missing or damaged."""
    paths = [folder / f"{split}-images.npy", folder / f"{split}-labels.npy"]
    manifest_path = folder / f"{split}.json"
    if manifest_path.exists():
        try:
            if json.loads(manifest_path.read_text()) != _checksums(paths):
                raise ValueError("checksums differ")
            images, labels = (np.load(path, mmap_mode="r") for path in paths)
            return Split(images, labels)
        except (OSError, ValueError) as error:
            print(f"cache {folder} is damaged ({error}); decoding {split} again")
    images, labels = _decode(builder, split, image_size)
    folder.mkdir(parents=True, exist_ok=True)
    for path, array in zip(paths, (images, labels), strict=True):
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.save(file, array)
        shutil.move(partial, path)
    manifest_path.write_text(json.dumps(_checksums(paths)))
    return Split(images, labels)


def _checksums(paths: list[Path]) -> dict[str, int]:
    return {path.name: zlib.crc32(path.read_bytes()) for path in paths}


def _default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "gini_jax"


def _decode(builder: Any, split: str, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    source = builder.as_data_source(split=split)
    shape = (len(source),)
    labels = np.empty(shape, np.int32)
    images = np.empty(shape + _fit(source[0]["image"], image_size).shape, np.uint8)

    def decode(index: int) -> None:
        example = source[index]
        image = _fit(example["image"], image_size)
        if image.shape != images.shape[1:]:
            raise InputError(
                f"images of {builder.name} have many sizes, {image.shape} and {images.shape[1:]} "
                "among them; set --config.dataset.image_size, such as 224"
            )
        images[index], labels[index] = image, example["label"]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        work = pool.map(decode, range(len(source)))
        for _ in tqdm(work, f"decoding {builder.name} {split}", len(source), mininterval=1):
            pass
    return images, labels


def _stored_size(image_size: int) -> int:
    """Side of the stored squares, with room for crops of `image_size`; 0 for 0."""
    return image_size + image_size // 7


def _fit(image: np.ndarray, image_size: int) -> np.ndarray:
    """RGB, and square with room for a crop of `image_size`, if that is set."""
    if image.shape[-1] == 1:
        image = np.repeat(image, 3, axis=-1)
    if not image_size:
        return image
    side = _stored_size(image_size)
    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
    return resized[top : top + side, left : left + side]
