"""The folder of a run: which run owns it, and its metrics file."""

import itertools
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gini_jax.config.files import from_saved
from gini_jax.config.registry import flattened
from gini_jax.data.source import Dataset
from gini_jax.errors import InputError
from gini_jax.storage import is_remote, json_text, read_json, refuse_patterns, write
from gini_jax.training.checks import inactive
from gini_jax.training.progress import Progress
from gini_jax.training.schedules import SCHEDULES

# Settings that may change within a run: where the data is, and how the run is saved and observed.
CHANGEABLE_ON_RESUME = (
    "dataset.data_dir",
    "dataset.feed",
    "evals",
    "loggers",
    "log_every_steps",
    "report",
    "eval_batch_size",
    "eval_every_epochs",
    "early_stopping_epochs",
    "steps_per_call",
    "checkpoint_every_epochs",
    "checkpoint_every_minutes",
    "debug_nans",
    "profile",
)


_TEST_AGAIN = "delete it, and start the run again, which tests its checkpoint"


def config_json(config: ConfigDict) -> str:
    """The config as JSON, as it is written to the workdir."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def saved_config(workdir: Path) -> ConfigDict:
    """The config of a workdir's run; settings added after the run get their defaults.

    Raises:
        InputError: the config cannot be read, or an earlier version of gini_jax wrote it.
    """
    path = workdir / "config.json"
    try:
        saved = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); choose another --workdir") from error
    if "terms" not in saved.get("loss", {}):
        raise InputError(
            f"{path} was written by gini_jax 0.1, whose runs this version cannot resume; choose "
            "another --workdir, or finish that run with the version that wrote it"
        )
    return from_saved(saved)


def write_run(workdir: Path, config: ConfigDict, dataset: Dataset) -> None:
    """Writes config.json, and dataset.json with the names of the classes and the splits' sizes.

    If a finished run is extended, this deletes result.json, which is that of the shorter run.
    """
    old = workdir / "result.json"
    if old.exists() and not is_at_end(read_json(old, _TEST_AGAIN), config):
        old.unlink()
    write(workdir / "config.json", config_json(config))
    write(workdir / "dataset.json", json_text(about_data(dataset)))


def about_data(dataset: Dataset) -> dict[str, Any]:
    """What a run records of its data: names, sizes and digests."""
    return {
        "class_names": list(dataset.class_names),
        "superclass_names": list(dataset.superclass_names),
        "superclass_of": list(dataset.superclass_of),
        "image_size": dataset.image_size,
        "examples": {name: split.labels.shape[0] for name, split in dataset.splits.items()},
        "digests": dict(dataset.digests),
    }


def changes_of_data(workdir: Path, dataset: Dataset) -> list[str]:
    """The differences between a data set and the one that a run recorded, one line each.

    Args:
        workdir: the run's folder; if nothing is recorded, there are no differences.
        dataset: decoded, or as shapes: then only classes and sizes are compared.
    """
    path = workdir / "dataset.json"
    if not path.exists():
        return []
    old, new = read_json(path), about_data(dataset)
    found = []
    if old["class_names"] != new["class_names"]:
        gone, more = (
            [name for name in a if name not in b][:5]
            for a, b in (
                (old["class_names"], new["class_names"]),
                (new["class_names"], old["class_names"]),
            )
        )
        parts = [f"{gone} are gone"] * bool(gone) + [f"{more} are new"] * bool(more)
        found.append(f"  classes: {', '.join(parts) or 'in another order'}")
    if old["image_size"] != new["image_size"]:
        found.append(f"  image size: {old['image_size']} there, {new['image_size']} now")
    for split, size in new["examples"].items():
        if size != old["examples"].get(split):
            found.append(f"  {split}: {old['examples'].get(split)} images there, {size} now")
    for split, digest in new["digests"].items():
        same_size = new["examples"][split] == old["examples"].get(split)
        if same_size and digest != old.get("digests", {}).get(split, digest):
            found.append(f"  {split}: other images or labels")
    return found


def check_data(workdir: Path, dataset: Dataset) -> None:
    """Refuses data that have changed since a run began.

    Raises:
        InputError: names what has changed.
    """
    if found := changes_of_data(workdir, dataset):
        raise InputError(
            f"the data of the run in {str(workdir)!r} have changed since it began:\n"
            + "\n".join(found)
            + "\nRestore the old data, or start a new run from its weights: --workdir=NEW "
            f"--init_from={workdir}"
        )


def is_at_end(result: Mapping[str, Any], config: ConfigDict) -> bool:
    """Whether a run with this result is complete under a config; otherwise training continues.

    Examples:
        >>> from gini_jax.config import default_config
        >>> config = default_config()
        >>> config.update(num_epochs=9, early_stopping_epochs=2)
        >>> is_at_end({"epochs": 5, "best_epoch": 3}, config)
        True
        >>> config.early_stopping_epochs = 3
        >>> is_at_end({"epochs": 5, "best_epoch": 3}, config)
        False
    """
    return Progress(epochs=result["epochs"], best_epoch=result["best_epoch"]).is_last(config)


def holds_result(workdir: Path, config: ConfigDict) -> bool:
    """Whether a folder holds the final result of a run of this config, and its arrays.

    Raises:
        InputError: it holds the result of another config.
    """
    if not (workdir / "result.json").exists():
        return False
    check_workdir(workdir, config)
    result = read_json(workdir / "result.json", _TEST_AGAIN)
    return is_at_end(result, config) and (workdir / "arrays.npz").exists()


def check_workdir(workdir: Path, config: ConfigDict, sweep: Path | None = None) -> None:
    """Creates the workdir, or checks that it is writable and holds no run of another config.

    For a member of a sweep, `sweep` is the sweep's folder; the error suggests another one.

    A run that has no checkpoint yet, for example because its loss became NaN, may start again with
    other settings.

    Raises:
        InputError: the workdir cannot be written, or holds a run of another config.
    """
    make_workdir(workdir)
    if (workdir / "sweep.csv").exists():
        raise InputError(
            f"workdir {str(workdir)!r} holds a sweep; give a run a folder of its own, such as "
            f"--workdir={workdir}/run"
        )
    started = any((workdir / "checkpoints").glob("[0-9]*"))
    if not (workdir / "config.json").exists():
        if started:
            raise InputError(
                f"workdir {str(workdir)!r} holds checkpoints but no config.json, so their "
                "settings are unknown; choose another --workdir, restore config.json, "
                "or delete the folder"
            )
        return
    if not started and not (workdir / "result.json").exists():
        return
    saved = saved_config(workdir)
    differing = differences(saved, config)
    if list(differing) == ["num_epochs"]:
        _check_extension(workdir, saved.num_epochs, config)
    elif differing:
        another = _another(workdir, config, sweep)
        raise InputError(
            f"workdir {str(workdir)!r} holds a run with another config:\n"
            + "\n".join(differing.values())
            + f"\nChoose another one, such as --workdir={another}, set these values back, "
            "or delete the folder.",
            fix=("workdir", another),
        )


def _another(workdir: Path, config: ConfigDict, sweep: Path | None) -> str:
    """A folder for another run or sweep."""
    if sweep is None:
        return f"{workdir}-{config.objective}"
    numbered = (f"{sweep}-{i}" for i in itertools.count(2))
    return next(name for name in numbered if not Path(name).exists())


def differences(saved: ConfigDict, config: ConfigDict) -> dict[str, str]:
    """The differences between two configs, as text by setting.

    They leave out CHANGEABLE_ON_RESUME, and settings that neither config reads.
    """
    old, new = (flattened(json.loads(config_json(x))) for x in (saved, config))
    alike = {*CHANGEABLE_ON_RESUME, *(inactive(saved) & inactive(config))}
    return {
        key: f"  {key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(set(old) | set(new))
        if old.get(key) != new.get(key) and key not in alike
    }


def _check_extension(workdir: Path, epochs: int, config: ConfigDict) -> None:
    """Refuses another number of epochs, unless it only continues the run.

    Raises:
        InputError: the learning rate so far would differ, or there are fewer epochs than before.
    """
    if config.num_epochs < epochs:
        raise InputError(
            f"workdir {str(workdir)!r} holds a run of {epochs} epochs; num_epochs="
            f"{config.num_epochs} is fewer. Choose another --workdir, or a larger number"
        )
    if not SCHEDULES.create(config.schedule).extends:
        raise InputError(
            f"workdir {str(workdir)!r} holds a run of {epochs} epochs; with {config.num_epochs}, "
            f"its {config.schedule.name} learning rate would differ from the first step on. Start "
            f"a new run from its weights: --workdir=NEW --init_from={workdir}"
        )


def make_workdir(workdir: Path, fix: str = "choose another with --workdir") -> None:
    """Creates the workdir, or checks that it can be written.

    Args:
        workdir: the folder.
        fix: what to do if it cannot be written.

    Raises:
        InputError: it cannot be written, or checkpoints do not support its path.
    """
    refuse_patterns(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{socket.gethostname()}-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except Exception as error:  # bucket libraries raise their own error types
        if not is_remote(workdir) and not isinstance(error, OSError):
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"workdir {str(workdir)!r} cannot be written ({reason}); {fix}") from error


def keep_lines_until(path: Path, step: int) -> None:
    """Drops the lines of metrics.jsonl that are newer than the checkpoint being resumed."""
    if path.exists():
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:
                break  # an incomplete line, from a process that was killed
        write(path, "".join(kept))
