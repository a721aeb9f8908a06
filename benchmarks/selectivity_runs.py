"""Doses of class selectivity in networks that are trained from their first layer.

    python benchmarks/selectivity_runs.py --part=digits --out=results/selectivity_digits.json
    python benchmarks/selectivity_runs.py --part=cifar100 --data_dir=DIR --out=FILE

The protocol is in docs/selectivity.md. A run is trained, measured by benches, and added to `--out`;
what `--out` holds already is not run again, and a run that was interrupted goes on. Seeds come
first, so that an unfinished file has all arms for some seeds. `--minutes` starts no run later.
"""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

import gini_jax
from benchmarks.selectivity_doses import REFERENCES, SEEDS, chosen, config_of, opened, saved, wanted
from gini_jax.data import Split
from gini_jax.data.protocols import HELD_OUT
from gini_jax.devices import prepare_cpu
from gini_jax.downstream import corruptions, fewshot, outliers, prune, retrieval, robust
from gini_jax.downstream.subject import Subject, subject_of
from gini_jax.evals import subsample

_PART = flags.DEFINE_enum("part", "digits", [*SEEDS], "Which data.")
_DATA = flags.DEFINE_string("data_dir", "", "cifar100: its folder, prepared by TFDS.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures; what it holds stays.")
_RUNS = flags.DEFINE_string("workdir", "runs/selectivity", "Folder of the runs.")
_SEEDS = flags.DEFINE_integer("seeds", 0, "Seeds of an arm; 0: as the protocol says.")
_MINUTES = flags.DEFINE_float("minutes", 0.0, "Start no run after this many minutes; 0: no limit.")
_EPOCHS = flags.DEFINE_integer("epochs", 0, "Epochs of a run; 0: as the protocol says.")

BENCHES: tuple[Any, ...] = (retrieval, fewshot, outliers, prune, corruptions)
TESTED = 1000  # test images, and images of held-out classes, that benches see at most
ATTACKED, BOUND = 200, 4 / 255  # test images, and the largest change of a pixel
KEPT = (
    *("test_accuracy", "test_class_accuracy", "test_loss", "test_ece", "knn_accuracy"),
    *("selectivity", "nc1", "effective_rank", "feature_correlation", "top_purity"),
    *("dead_features", "feature_gini", "val_accuracy", "best_epoch"),
)


def figures(part: str, arm: str, strength: float | None, seed: int, final: bool) -> dict[str, Any]:
    """Trains a run, or ends it; with its benches if it is one that is compared."""
    folder = Path(_RUNS.value) / part / f"{arm}_{strength}_{seed}"
    config = config_of(part, arm, strength, seed, _DATA.value)
    config.num_epochs = _EPOCHS.value or config.num_epochs
    if not final:
        config.evals = ()
    run = gini_jax.train(config, folder)
    result = run.numbers
    result = result | {"val_loss": run.curves.loc[result["best_epoch"], "val_loss"]}
    keys = KEPT if final else ("val_accuracy", "val_loss")  # the choice sees no test image
    found = {key: result[key] for key in keys if result.get(key) is not None}
    if final:
        found |= benches(folder)
    shutil.rmtree(folder)
    jax.clear_caches()  # else the programs of many runs use up the process's memory maps
    return {key: round(float(value), 6) for key, value in found.items()}


def benches(folder: Path) -> dict[str, float]:
    """What the features of a run are good for; of what fits its data."""
    subject, found = fewer(subject_of(folder)), {}
    for one in BENCHES:
        if not (hasattr(one, "unfit") and one.unfit(subject)):
            measured = one.measure(subject)
            found |= {k: v for k, v in measured.items() if k in one.KEYS}
            if one is prune:
                eighth = measured["prune/sizes"] == subject.test.pooled.shape[1] // 8
                found["pruned_eighth"] = measured["prune/random"][eighth][0]
    images, labels = subject.test_images(ATTACKED)
    given = (subject.network, subject.trained.variables, images, labels)
    attacked = robust.under_attack(*given, "linf", robust.STEPS, [0, BOUND])
    found["robust_pgd_linf"] = attacked[1]  # of the images that are right without it
    return {key: float(value) for key, value in found.items()}


def fewer(subject: Subject) -> Subject:
    """The subject with at most `TESTED` images of each split that features are tested on."""
    splits = dict(subject.dataset.splits)
    for name in {"test", HELD_OUT} & set(splits):
        rows = subsample(len(splits[name].labels), TESTED)
        splits[name] = Split(np.asarray(splits[name].images[rows]), splits[name].labels[rows])
    return dataclasses.replace(subject, dataset=dataclasses.replace(subject.dataset, splits=splits))


def main(argv: list[str]) -> None:
    """Adds a row for each run."""
    del argv
    prepare_cpu()
    logging.set_verbosity(logging.ERROR)
    part, out = _PART.value, Path(_OUT.value) if _OUT.value else None
    epochs = _EPOCHS.value or config_of(part, "ce", None, 0).num_epochs
    report = opened(out, {"part": part, "epochs": epochs})
    done = {(row["arm"], row["strength"], row["seed"]) for row in report["rows"]}
    best: dict[str, float] = dict.fromkeys(REFERENCES, 0.0)
    total = len(list(wanted(part, best, _SEEDS.value)))
    start, here = time.perf_counter(), 0
    best |= chosen(report["rows"])
    for arm, strength, seed, final in wanted(part, best, _SEEDS.value):
        if (arm, strength, seed) in done:
            continue
        now = time.perf_counter()
        if _MINUTES.value and now - start > 60 * _MINUTES.value:
            print("the minutes are over; run the command again to go on", flush=True)
            return
        found = figures(part, arm, strength, seed, final)
        row = {"arm": arm, "strength": strength, "seed": seed, "figures": found}
        report["rows"].append(row | {"seconds": round(time.perf_counter() - now, 1)})
        best |= chosen(report["rows"])
        here += 1
        left = (time.perf_counter() - start) / here * (total - len(report["rows"])) / 60
        print(
            f"{part} {arm:12} {strength or '':>5} seed {seed}: "
            f"{found.get('test_accuracy', found.get('val_accuracy')):.4f}, "
            f"{time.perf_counter() - now:.0f} s; {len(report['rows'])} of {total}, about "
            f"{left:.0f} min left",
            flush=True,
        )
        saved(report, out)


if __name__ == "__main__":
    app.run(main)
