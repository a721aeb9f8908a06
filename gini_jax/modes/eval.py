"""Tests a checkpoint of a run again, and writes eval.json; result.json stays as it is."""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from gini_jax.data import load_dataset
from gini_jax.data.source import Dataset
from gini_jax.devices import num_devices, wait_for_all
from gini_jax.errors import InputError, unknown_name
from gini_jax.storage import json_text, write
from gini_jax.training.checkpoints import Checkpoints
from gini_jax.training.experiment import build_experiment
from gini_jax.training.lock import lock
from gini_jax.training.result import measure
from gini_jax.training.workdir import changes_of_data, make_workdir

FLAGS: dict[str, Any] = {
    "step": (None, int, "Step of the checkpoint; by default the best by validation accuracy."),
    "split": ("test", str, "Split to evaluate on: train, val or test."),
}
# The settings of the command line that this mode can use on a finished run.
USES = ("dataset.data_dir", "dataset.test_split", "eval_batch_size", "evals")


def main(
    config: ConfigDict,
    workdir: Path,
    *,
    step: int | None = None,
    split: str = "test",
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Tests a checkpoint of a workdir.

    Args:
        config: the run's settings.
        workdir: the run's folder.
        step: the checkpoint's step; the best by default.
        split: `train`, `val` or `test`.
        devices: to compute on; all by default, of any number.

    Returns:
        What `eval.json` holds: the step, the split, the device, and the evaluations' numbers.

    Raises:
        InputError: bad input, or the workdir holds no checkpoint.
        RunError: the checkpoint cannot be read.
    """
    if not any((workdir / "checkpoints").glob("[0-9]*")):
        raise InputError(f"workdir {str(workdir)!r} holds no checkpoint; train a run there first")
    if not (workdir / "config.json").is_file():
        raise InputError(f"workdir {str(workdir)!r} lacks its config.json; restore it")
    if split not in ("train", "val", "test"):
        raise unknown_name("split", split, ("train", "val", "test"))
    make_workdir(workdir, "eval.json is written there; copy the run to a folder of your own")
    dataset = load_dataset(config.dataset, only={"train", split})
    wait_for_all("data")
    changes = _changes(workdir, dataset)
    if not len(dataset.splits[split].labels):
        raise InputError(f"--split={split}: the run's {split} split is empty; give --split=test")
    # The training batch size does not matter here; it only has to fit the number of devices.
    trained = config.copy_and_resolve_references()
    trained.dataset.sampler = "shuffled"
    trained.batch_size = num_devices(devices) * config.grad_accumulation
    experiment = build_experiment(trained, dataset, devices)
    with lock(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
            step = checkpoints.best_step() if step is None else step
            print(f"evaluating step {step} of {workdir} on its {split} split")
            variables = checkpoints.variables(step)
        tested = replace(dataset, splits=dataset.splits | {"test": dataset.splits[split]})
        numbers, _ = measure(experiment, tested, variables, None, devices)
        device = f"{num_devices(devices)} x {jax.devices()[0].device_kind}"
        result = {"step": step, "split": split, "device": device, **numbers}
        result["notes"] = [f"other data than the run's own: {change.strip()}" for change in changes]
        if jax.process_index() == 0:
            write(workdir / "eval.json", json_text(result))
            for key, value in numbers.items():
                if value is not None:
                    print(f"  {key.removeprefix('test_'):24} {value:.4f}")
            print(f"written to {workdir / 'eval.json'}")
    return result


def _changes(workdir: Path, dataset: Dataset) -> list[str]:
    """How the data differ from the run's own; prints it, and refuses other classes."""
    changes = changes_of_data(workdir, dataset)
    if changes and changes[0].startswith("  classes"):
        raise InputError(
            f"the classes of the data are not those that the run in {str(workdir)!r} learnt:\n"
            f"{changes[0]}\nGive data with the run's classes: --config.dataset.data_dir"
        )
    if changes:
        text = "\n".join(["warning: these are not the run's own data:", *changes])
        print(text, file=sys.stderr)
    return changes
