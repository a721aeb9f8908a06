"""Images a second of `--mode=predict`, beside the network alone and decoding alone.

    python benchmarks/predict.py --workdir=runs/photos --images='photos/*/*.jpg' \
        --out=results/predict.json

All ways take turns on the same files; medians and quartiles over the rounds. The first round, which
compiles and starts the processes, does not count. A case is added to those that the file holds.
"""

import contextlib
import io
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from gini_jax.data.images import stored_or_reason

_WORKDIR = flags.DEFINE_string("workdir", "runs/photos", "A finished run.")
_IMAGES = flags.DEFINE_string("images", "photos/*/*.jpg", "Pattern of the image files.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds of each way.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")


def main(argv: list[str]) -> None:
    """Prints and writes the figures."""
    del argv
    import jax  # not above: the processes that decode read this file too

    import gini_jax
    from gini_jax.modes import predict

    run = Path(_WORKDIR.value)
    trained = gini_jax.load(run)
    stored = trained.config.dataset.image_size
    decode = partial(stored_or_reason, stored=stored, image_size=trained.image_size)
    files = predict._files(_IMAGES.value)
    batch = np.stack([decode(path) for path in files[: predict.BATCH]])

    def network() -> None:
        for _ in range(0, len(files), len(batch)):
            trained.probabilities(batch)

    pools = {"threads": predict.decoders(1), "processes": predict.decoders(predict.MANY)}

    def decoding(way: str) -> None:
        list(pools[way].map(decode, files, chunksize=16))

    def whole() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            predict.main(trained.config, run, images=_IMAGES.value)

    ways: dict[str, Callable[[], None]] = {
        "network": network,
        **{f"decoding in {way}": partial(decoding, way) for way in pools},
        "predict": whole,
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(_ROUNDS.value + 1):
        for way, measured in ways.items():
            start = time.perf_counter()
            measured()
            rates[way].append(len(files) / (time.perf_counter() - start))
    case: dict[str, Any] = {"files": len(files), "image_size": trained.image_size}
    case |= {way: [round(x, 1) for x in quartiles(there[1:])] for way, there in rates.items()}
    print(case)
    if _OUT.value:
        out = Path(_OUT.value)
        cases = json.loads(out.read_text())["cases"] if out.exists() else {}
        report = {
            "device": jax.devices()[0].device_kind,
            "cores": os.cpu_count(),
            "jax": jax.__version__,
            "rounds": _ROUNDS.value,
            "cases": cases | {trained.config.name: case},
        }
        out.write_text(json.dumps(report, indent=2) + "\n")


def quartiles(values: list[float]) -> list[float]:
    """The lower quartile, the median and the upper one."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, middle, high]


if __name__ == "__main__":
    app.run(main)
