"""All pairs of features: each two meet in a run that ends well, or in one error before it begins.

A covering array: each row is a network, data, an objective and settings, and what is done with the
run afterwards; each two values of different columns stand together in some row. A row ends in
results that agree with each other, or in one InputError before it writes metrics.
"""

import collections
import itertools
import json
import warnings
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import gini_jax
from gini_jax.config import default_config, set_component
from gini_jax.errors import InputError
from gini_jax.evals.accuracy import accuracy
from gini_jax.losses.terms import PRESETS, About, SumTerm, entry_of, needs_of
from gini_jax.models import MODELS, from_torch
from gini_jax.modes import bench, predict, report
from gini_jax.modes import eval as eval_mode
from gini_jax.modes import export as export_mode
from gini_jax.modes.train import main as train
from gini_jax.training.checkpoints import Checkpoints
from tests.conftest import SHARED_TFDS

pairwise = pytest.importorskip("allpairspy", reason="draws the pairs, and is not installed")

TINY: dict[str, dict[str, Any]] = {
    "resnet": {"width": 4, "blocks": (1, 1)},
    "cvt": {"widths": (8, 8, 8), "blocks": (1, 1, 1), "heads": (1, 1, 2)},
    "mobilenet": {"stages": ((1, 8, 1, 2, 3), (2, 8, 2, 2, 3)), "stem": 8, "last": 16},
    "efficientnet": {"stages": ((1, 8, 1, 2, 3), (2, 8, 2, 2, 5)), "stem": 8, "last": 16},
}
OWN = "tests.own_parts:TwoLayers"
NETWORKS = [*MODELS, OWN]
DATA: dict[str, dict[str, Any]] = {
    "digits": {},
    "folder of odd images": {"name": "folder", "image_size": 32},
    "tfds": {"name": "cifar100", "data_dir": str(SHARED_TFDS), "train_size": 200},
    "hf": {"name": "hf:photos", "image_size": 32},
    "own source": {"name": "tests.own_parts:Halves", "image_size": 32},
    "held-out classes": {"held_out_classes": 3},
    "superclasses": {"name": "tests.test_pairs:Families", "superclasses": True},
    "labelled": {"labelled": 6},
    "noise": {"label_noise": 0.3, "label_noise_kind": "pairwise"},
}
COLUMNS: dict[str, list[Any]] = {
    "network": NETWORKS,
    "data": list(DATA),
    "objective": list(PRESETS),
    "head": ["auto", "linear", "cosine", "probe"],
    "feed": ["device", "stream"],
    "accumulation": [1, 2],
    "average": [0.0, 0.9],
    "groups": [(), ((".*bias", 2.0, 0.0),)],
    "precision": ["float32", "bfloat16"],
    "use": ["predict", "export", "measure", "report", "continue"],
}


def is_refused(row: dict[str, Any]) -> bool:
    """Whether two values of a row, or of its beginning, do not go together."""
    objective, network = row.get("objective"), row.get("network")
    needs = needs_of(PRESETS[objective]) if objective else set()
    terms = PRESETS.get(objective, {})
    groups = "tfds", "superclass pairs"
    parts = [
        row.get("head") not in (None, "auto") and network == OWN,
        needs & {"cosine", "probe"} and network == OWN,
        needs & {"cosine"} and row.get("head") in ("linear", "probe"),
        needs & {"probe"} and row.get("head") in ("linear", "cosine"),
        "superclasses" in needs and row.get("data", "tfds") not in groups,
        row.get("accumulation") == 2
        and any(not isinstance(entry_of(t).create(About()), SumTerm) for t in terms),
        row.get("data") == "labelled" and row.get("accumulation") == 2,
        row.get("precision") == "bfloat16" and network == OWN,
    ]
    return any(parts)


def rows(skipped: set[str]) -> list[dict[str, Any]]:
    """The covering array, without the pairs that are refused and the data that are not here."""
    columns = COLUMNS | {"data": [name for name in DATA if name not in skipped]}
    names = list(columns)
    fits = lambda values: not is_refused(dict(zip(names, values, strict=False)))  # noqa: E731
    found = pairwise.AllPairs(list(columns.values()), filter_func=fits)
    return [dict(zip(names, row, strict=True)) for row in found]


SKIPPED = {"tfds"} - ({"tfds"} if SHARED_TFDS.is_dir() else set())
SKIPPED |= set() if find_spec("datasets") else {"hf"}
ROWS = rows(SKIPPED)
