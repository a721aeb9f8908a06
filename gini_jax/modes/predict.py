"""Classifies image files with a trained network, and writes predictions.csv."""

import glob
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from tqdm import tqdm

from gini_jax.data.images import decoded_ahead, stored_or_reason
from gini_jax.errors import InputError
from gini_jax.storage import csv_text, printable, write
from gini_jax.trained import Trained, load
from gini_jax.training.workdir import make_workdir

BATCH = 256  # images that are classified at a time; the next ones are decoded meanwhile
MANY = 10_000  # from this many files, processes are worth starting

FLAGS: dict[str, Any] = {
    "images": (None, str, "Image files: a path or a pattern such as 'new/*.jpg'."),
    "step": (None, int, "Step of the checkpoint; the best by default."),
    "explain": (False, bool, "Also draw the features that vote most, for the first 20 images."),
}
USES: tuple[str, ...] = ()


def main(
    config: ConfigDict,
    workdir: Path,
    *,
    images: str | None = None,
    step: int | None = None,
    explain: bool = False,
) -> pd.DataFrame:
    """Predicts the classes of images.

    A file that cannot be read is named and counted; the others are classified. Several processes
    decode 10,000 files or more, and threads decode fewer.

    Args:
        config: not used; the run brings its own.
        workdir: of the run.
        images: a path or a pattern.
        step: of the checkpoint; the best by default.
        explain: whether to draw explanations.png: see `gini_jax.downstream.explain`.

    Returns:
        What predictions.csv holds: `image, class, probability`, and as JSON in `top5` the names and
        probabilities of the five most probable classes.

    Raises:
        InputError: no image is given or found, none can be read, the workdir holds no run, or the
            network cannot be explained.
    """
    del config
    paths = files_of(images, "--images")
    trained = load(workdir, step)
    if explain and trained.head is None:
        raise InputError(
            "--explain needs a network with a linear last layer, whose weights are the votes; "
            "leave out --explain"
        )
    make_workdir(workdir, "predictions.csv is written there; or use gini_jax.load in Python")
    stored, image_size = trained.config.dataset.image_size, trained.image_size
    decode = partial(stored_or_reason, stored=stored, image_size=image_size)
    rows, damaged = _predicted(trained, paths, decode)
    say_left_out(damaged)
    if not rows:
        raise InputError(f"--images={images}: none of the {len(paths)} files is a readable image")
    table = pd.DataFrame(rows)
    write(workdir / "predictions.csv", csv_text(table))
    for row in rows[:20]:
        print(f"{row['image']}: {printable(row['class'])} ({row['probability']:.3f})")
    left_out = f"; {len(damaged)} files left out" if damaged else ""
    print(f"{len(rows)} predictions written to {workdir / 'predictions.csv'}{left_out}")
    if explain:
        readable = (x for x in map(decode, paths) if isinstance(x, np.ndarray))
        _draw_votes(trained, np.stack(list(islice(readable, 20))), workdir / "explanations.png")
    return table


def _predicted(
    trained: Trained, paths: Sequence[str], decode: Callable[[str], np.ndarray | str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each image, and the reason for each file that is not a readable image."""
    rows: list[dict[str, Any]] = []
    damaged: list[str] = []
    for files, pixels in readable(paths, decode, damaged):
        found = trained.probabilities(pixels)
        rows += [_row(x, p, trained.class_names) for x, p in zip(files, found, strict=True)]
    return rows, damaged


def readable(
    paths: Sequence[str], decode: Callable[[str], np.ndarray | str], damaged: list[str]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Paths and pixels of the files that can be read, batch by batch, with a progress bar.

    Args:
        paths: the files.
        decode: gives the pixels of a file, or the reason why it cannot be read.
        damaged: the reasons are added to it.
    """
    done = 0
    bar = tqdm(total=len(paths), unit=" images", disable=len(paths) <= BATCH)
    with bar, decoders(len(paths)) as pool:
        for decoded in decoded_ahead(paths, decode, BATCH, pool):
            files = paths[done : done + len(decoded)]
            done += len(files)
            damaged += [x for x in decoded if isinstance(x, str)]
            good = [i for i, x in enumerate(decoded) if isinstance(x, np.ndarray)]
            if good:
                yield [files[i] for i in good], np.stack([decoded[i] for i in good])
            bar.update(len(files))


def _draw_votes(trained: Trained, pixels: np.ndarray, png: Path) -> None:
    from gini_jax.downstream.explain import draw, explained
    from gini_jax.drawing import as_png  # imports matplotlib

    found = explained(trained, pixels)._asdict()
    arrays = {f"explain/{key}": value for key, value in found.items()}
    write(png, as_png(draw, {"": [arrays]}, trained.class_names))
    where = f", with the regions where features fire in {found['layer']}" if found["layer"] else ""
    print(f"written to {png}{where or '; the network has no layer that shows regions'}")


def say_left_out(damaged: Sequence[str]) -> None:
    """Names the first files that could not be read."""
    for text in damaged[:20]:
        print(f"left out: {printable(text)}", file=sys.stderr)
    if len(damaged) > 20:
        print(f"left out: {len(damaged)} files in all", file=sys.stderr)


def files_of(images: str | None, flag: str) -> list[str]:
    """The file of that name, or the files that match the pattern.

    Raises:
        InputError: there is none.
    """
    if not images:
        raise InputError(f"--mode=predict needs {flag}=PATH, or a pattern such as 'new/*.jpg'")
    there = Path(images).expanduser()
    if there.is_dir():
        raise InputError(f"{flag}={images} is a folder; give '{images}/*'")
    if there.exists():  # also if its name could be read as a pattern
        return [str(there)]
    found = sorted(glob.glob(str(there), recursive=True))
    paths = [path for path in found if not Path(path).is_dir()]
    if not paths:
        only = f", only the folder {found[0]}; give '{found[0]}/*'" if found else ""
        raise InputError(
            f"{flag}={images} matches no file"
            + (only or "; give a path, or a pattern such as 'new/*.jpg'")
        )
    return paths


def decoders(files: int) -> Executor:
    """Workers that decode: processes for many files; for a few, threads, which start at once."""
    if files < MANY:
        return ThreadPoolExecutor(os.cpu_count())
    return ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("forkserver"))


def _row(path: str, probabilities: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    order = probabilities.argsort()[::-1][:5]
    top5 = [[names[k], round(float(probabilities[k]), 6)] for k in order]
    return {
        "image": printable(path),
        "class": names[order[0]],
        "probability": top5[0][1],
        "top5": json.dumps(top5, ensure_ascii=False),
    }
