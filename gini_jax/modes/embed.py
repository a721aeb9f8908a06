"""Writes features of images as Parquet, and shows the nearest images of one."""

import base64
import html
import io
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from gini_jax.data import load_dataset
from gini_jax.data.images import stored_or_reason
from gini_jax.data.protocols import HELD_OUT
from gini_jax.errors import InputError, unknown_name
from gini_jax.modes.predict import BATCH, files_of, readable, say_left_out
from gini_jax.storage import printable, write
from gini_jax.trained import Trained, load
from gini_jax.training.state import feature_shapes
from gini_jax.training.workdir import make_workdir

FLAGS: dict[str, Any] = {
    "images": (None, str, "Image files: a path or a pattern such as 'new/*.jpg'."),
    "splits": (None, str, "Splits of the run's data instead, such as 'train,test'."),
    "layer": ("pooled", str, "Whose features are written; their mean over space or tokens."),
    "step": (None, int, "Step of the checkpoint; the best by default."),
    "like": (None, str, "Also write nearest.html: the images nearest to this one, by cosine."),
    "top": (12, int, "How many images nearest.html shows."),
}
USES: tuple[str, ...] = ()


def main(
    config: ConfigDict,
    workdir: Path,
    *,
    images: str | None = None,
    splits: str | None = None,
    layer: str = "pooled",
    step: int | None = None,
    like: str | None = None,
    top: int = 12,
) -> pd.DataFrame:
    """Writes embeddings.parquet and, with `like`, nearest.html.

    Args:
        config: not used; the run brings its own.
        workdir: of the run.
        images: a path or a pattern.
        splits: names of splits, separated by commas; either these or `images`.
        layer: whose features.
        step: of the checkpoint; the best by default.
        like: an image file, to whose features those written are compared.
        top: how many of the nearest are shown.

    Returns:
        What embeddings.parquet holds: `image`, a path, or `SPLIT[NUMBER]`; `class`, that of
        training for a split, and None for a file; and `vector`, the features `[C]`.

    Raises:
        InputError: nothing to embed is given or found, or the layer is unknown.
    """
    del config
    if bool(images) == bool(splits):
        given = "both are given" if images else "neither is given"
        raise InputError(f"{given}: give --images=PATTERN, or --splits=train,test")
    if top < 1:
        raise InputError(f"--top={top}; it must be a positive number, such as --top=12")
    trained = load(workdir, step)
    known = feature_shapes(trained.model, trained.image_size)
    if layer not in known:
        raise unknown_name("--layer", layer, known)
    query = _one_file(like) if like else None
    make_workdir(workdir, "embeddings.parquet is written there")
    nearest = None
    if query:
        pixels = trained.pixels(query)
        nearest = _Nearest(_vectors(trained, pixels[None], layer)[0], top)
    batches = _of_splits(trained, str(splits)) if splits else _of_files(trained, str(images))
    table = _table(trained, batches, layer, nearest)
    if not len(table):
        empty = f"--splits={splits}: they are empty" if splits else f"--images={images}: none of "
        raise InputError(empty if splits else f"{empty}the files is a readable image")
    data = io.BytesIO()
    table.to_parquet(data, index=False)
    write(workdir / "embeddings.parquet", data.getvalue())
    size = len(table["vector"][0])
    print(f"{len(table)} vectors of {size} written to {workdir / 'embeddings.parquet'}")
    if nearest:
        write(workdir / "nearest.html", nearest.page(str(query), pixels))
        print(f"the {len(nearest.best)} nearest images are in {workdir / 'nearest.html'}")
    return table


def _one_file(like: str) -> str:
    found = files_of(like, "--like")
    if len(found) > 1:
        raise InputError(f"--like={like} matches {len(found)} files; give one, such as {found[0]}")
    return found[0]


Batch = tuple[Sequence[str], Sequence[str | None], np.ndarray]


def _table(
    trained: Trained, batches: Iterable[Batch], layer: str, nearest: "_Nearest | None"
) -> pd.DataFrame:
    """The rows of embeddings.parquet; the search for the nearest images sees each batch, too."""
    rows: list[dict[str, Any]] = []
    for names, classes, pixels in batches:
        vectors = _vectors(trained, pixels, layer)
        found = zip(names, classes, vectors, strict=True)
        rows += [{"image": name, "class": own, "vector": vector} for name, own, vector in found]
        if nearest:
            nearest.see(names, classes, vectors, pixels)
    return pd.DataFrame(rows)


def _vectors(trained: Trained, pixels: np.ndarray, layer: str) -> np.ndarray:
    """`[N, C]`: features, their mean over spatial or token axes."""
    found = trained.features(pixels, batch_size=len(pixels), layers=(layer,))[layer]
    return np.asarray(found, np.float32).mean(axis=tuple(range(1, found.ndim - 1)))


def _of_files(trained: Trained, images: str) -> Iterator[Batch]:
    """Paths and pixels of the files that can be read; the others are named at the end."""
    damaged: list[str] = []
    stored, size = trained.config.dataset.image_size, trained.image_size
    decode = partial(stored_or_reason, stored=stored, image_size=size)
    for files, pixels in readable(files_of(images, "--images"), decode, damaged):
        yield [printable(file) for file in files], [None] * len(files), pixels
    say_left_out(damaged)


def _of_splits(trained: Trained, splits: str) -> Iterator[Batch]:
    """Names, classes and pixels of the examples of splits."""
    names = [name.strip() for name in splits.split(",")]
    dataset = load_dataset(trained.config.dataset)
    for name in names:
        if name not in dataset.splits:
            raise unknown_name("--splits", name, dataset.splits)
    total = sum(len(dataset.splits[name].labels) for name in names)
    with tqdm(total=total, unit=" images", disable=total <= BATCH) as bar:
        for name in names:
            images, labels = dataset.splits[name]
            for start in range(0, len(labels), BATCH):
                index = np.arange(start, min(start + BATCH, len(labels)))
                own = [_class_name(trained, name, int(k)) for k in labels[index]]
                yield [f"{name}[{i}]" for i in index], own, np.asarray(images[index])
                bar.update(len(index))


def _class_name(trained: Trained, split: str, label: int) -> str | None:
    if split == HELD_OUT:  # a class that training did not see; the run does not know its name
        return f"held out {label}"
    return trained.class_names[label] if label >= 0 else None


class _Nearest:
    """The images whose features have the largest cosine with those of one image."""

    def __init__(self, vector: np.ndarray, top: int):
        self._vector, self._top = vector, top
        self.best: list[tuple[float, str, str | None, np.ndarray]] = []

    def see(self, names: Any, classes: Any, vectors: np.ndarray, pixels: np.ndarray) -> None:
        """Compares the images of a batch, and keeps the nearest of all so far."""
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(self._vector)
        cosines = (vectors @ self._vector) / np.maximum(lengths, 1e-30)
        order = np.argsort(-cosines, kind="stable")[: self._top]
        self.best += [(float(cosines[i]), names[i], classes[i], pixels[i]) for i in order]
        self.best = sorted(self.best, key=lambda one: -one[0])[: self._top]

    def page(self, name: str, pixels: np.ndarray) -> str:
        """The page: the image itself, then the nearest ones."""
        figures = "".join(
            _figure(image, f"{cosine:.3f}", own or "", path)
            for cosine, path, own, image in self.best
        )
        return _PAGE.format(
            title=f"Nearest to {html.escape(printable(name))}",
            query=_figure(pixels, "the image itself", "", printable(name)),
            figures=figures,
        )


def _figure(pixels: np.ndarray, *lines: str) -> str:
    """An image with lines of text below it."""
    data = io.BytesIO()
    image = Image.fromarray(pixels)
    scale = 160 / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS).save(
        data, format="png"
    )
    source = base64.b64encode(data.getvalue()).decode()
    text = "<br>".join(html.escape(line) for line in lines if line)
    return (
        f'<figure><img alt="" src="data:image/png;base64,{source}">'
        f"<figcaption>{text}</figcaption></figure>\n"
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0 auto; max-width: 1020px; padding: 1.5rem; font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.4rem; overflow-wrap: anywhere; }}
div {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 1rem; }}
figure {{ margin: 0; }} img {{ display: block; }}
figcaption {{ font-size: .8rem; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>{title}</h1>
{query}<p>By the cosine of their features, the nearest first:</p>
<div>
{figures}</div>
</body>
</html>
"""
