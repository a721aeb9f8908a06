"""The protocol of docs/selectivity.md: which doses, which runs, and with which settings."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import gini_jax
from gini_jax.config import set_model
from gini_jax.config.change import set_component, set_terms

# The ratio of a term's gradient to that of cross-entropy.
DOSES = (-0.3, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.3)
CURVES = ("gini", "renyi")  # the terms that are given in doses; gini alone in trained networks
TUNING_SEED = 1000  # of the choice of strengths; compared with nothing
RATIOS, SHARES = (0.03, 0.1, 0.3), (0.05, 0.1, 0.2)
REFERENCES = ("smoothing", "center", "supcon", "vcreg", "opl", "monosemantic")
SEEDS = {"digits": 10, "fashion_mnist": 5, "cifar100": 5}


def config_of(
    part: str, arm: str, strength: float | None, seed: int, data_dir: str = ""
) -> ConfigDict:
    """The settings of a run."""
    if part == "digits":
        config = gini_jax.get_config("digits:ce")
        config.dataset.train_size = 300
    elif part == "fashion_mnist":
        config = gini_jax.get_config("fashion_mnist:ce")
        config.dataset.update(train_size=5000, val_size=1000)
        set_model(config, "resnet_digits", width=8)
        config.num_epochs = 5
    else:
        config = gini_jax.get_config("cifar100_resnet18:ce")
        config.dataset.update(data_dir=data_dir, held_out_classes=80, image_size=16)
        config.dataset.update(train_size=8000, val_size=1000)
        set_model(config, "resnet18", width=16, blocks=(1, 1, 1, 1))
        set_component(config, "schedule", "cosine", learning_rate=0.1, warmup_epochs=0.5)
        config.num_epochs, config.batch_size = 6, 100
    config.loss.start_epoch, config.seed = 1, seed
    config.update(report=False, loggers=("jsonl",))
    config.checkpoint_every_epochs = max(1, config.num_epochs // 4)
    if arm == "smoothing":
        config.loss.label_smoothing = strength
    elif strength:
        config.loss.hold_gradient_ratios = True
        set_terms(config, {arm: strength})
    return config


def wanted(
    part: str, best: dict[str, float], seeds: int = 0
) -> Iterator[tuple[str, float | None, int, bool]]:
    """All runs: the choice of strengths first, then seed by seed; `best` is filled meanwhile."""
    for arm in REFERENCES:
        for strength in SHARES if arm == "smoothing" else RATIOS:
            yield arm, strength, TUNING_SEED, False
    for seed in range(seeds or SEEDS[part]):
        yield "ce", None, seed, True
        for dose in DOSES:
            if dose:
                yield "gini", dose, seed, True
        for arm in REFERENCES:
            yield arm, best[arm], seed, True


def chosen(rows: list[dict[str, Any]]) -> dict[str, float]:
    """By reference, the strength with the best validation accuracy; of equals, the lowest loss."""

    def rank(row: dict[str, Any]) -> tuple[float, float]:
        return row["figures"]["val_accuracy"], -row["figures"]["val_loss"]

    trials = [row for row in rows if row["seed"] == TUNING_SEED]
    return {row["arm"]: row["strength"] for row in sorted(trials, key=rank)}


def opened(out: Path | None, settings: dict[str, Any]) -> dict[str, Any]:
    """What `out` holds already, with the settings of its runs.

    Raises:
        SystemExit: the file holds runs with other settings.
    """
    report: dict[str, Any] = {"rows": []}
    if out and out.exists():
        report = json.loads(out.read_text())
        other = {key: report[key] for key, own in settings.items() if report.get(key, own) != own}
        if other:
            raise SystemExit(f"{out} holds runs with {other}, not {settings}; give another --out")
    report |= settings | {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    return report | {"cores": len(os.sched_getaffinity(0))}


def saved(report: dict[str, Any], out: Path | None) -> None:
    """Writes the report, so that the file is whole at any time."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".part").write_text(json.dumps(report) + "\n")
        os.replace(out.with_suffix(".part"), out)
