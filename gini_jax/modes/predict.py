"""Classifies image files with a trained network, and writes predictions.csv."""

import glob
from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

from gini_jax.errors import InputError
from gini_jax.storage import write
from gini_jax.trained import load

FLAGS: dict[str, Any] = {
    "images": (None, str, "Image files: a path or a pattern such as 'new/*.jpg'."),
    "step": (None, int, "Step of the checkpoint; the best by default."),
}
USES: tuple[str, ...] = ()


def main(
    config: ConfigDict, workdir: Path, *, images: str | None = None, step: int | None = None
) -> pd.DataFrame:
    """Predicts the classes of images.

    Args:
        config: not used; the run brings its own.
        workdir: of the run.
        images: a path or a pattern.
        step: of the checkpoint; the best by default.

    Returns:
        What predictions.csv holds: `image, class, probability`, and the five most probable classes.

    Raises:
        InputError: no image is given or found, one cannot be read, or the workdir holds no run.
    """
    del config
    if not images:
        raise InputError("--mode=predict needs --images=PATH, or a pattern such as 'new/*.jpg'")
    paths = sorted(glob.glob(str(Path(images).expanduser()), recursive=True))
    if not paths:
        raise InputError(
            f"--images={images} matches no file; give a path, or a pattern such as 'new/*.jpg'"
        )
    if folder := next((path for path in paths if Path(path).is_dir()), None):
        raise InputError(f"--images={images} matches the folder {folder}; give '{folder}/*'")
    trained = load(workdir, step)
    prediction = trained.predict(paths)
    order = prediction.probabilities.argsort(axis=1)[:, ::-1][:, :5]
    rows = [
        {
            "image": path,
            "class": name,
            "probability": round(float(p.max()), 6),
            "top5": "; ".join(f"{trained.class_names[k]} {p[k]:.4f}" for k in top),
        }
        for path, name, p, top in zip(
            paths, prediction.names, prediction.probabilities, order, strict=True
        )
    ]
    table = pd.DataFrame(rows)
    write(workdir / "predictions.csv", table.to_csv(index=False))
    for row in rows[:20]:
        print(f"{row['image']}: {row['class']} ({row['probability']:.3f})")
    print(f"{len(rows)} predictions written to {workdir / 'predictions.csv'}")
    return table
