"""The folder of a run: which run owns it, which process writes to it, and its metrics file."""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ml_collections import ConfigDict

from gini_jax.config import default_config, flattened, set_model
from gini_jax.data.source import Dataset
from gini_jax.errors import InputError, RunError

# Settings that may change within a run: where the data is, and how the run is saved and observed.
FREE = (
    "dataset.data_dir",
    "dataset.feed",
    "evals",
    "loggers",
    "report",
    "eval_batch_size",
    "eval_every_epochs",
    "steps_per_call",
    "checkpoint_every_epochs",
    "checkpoint_every_minutes",
    "debug_nans",
    "profile",
)


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
    config = default_config()
    set_model(config, saved["model"]["name"])
    with config.unlocked():
        config.loss.terms = ConfigDict(saved["loss"]["terms"])
        config.update(saved)
    return config


def write_run(workdir: Path, config: ConfigDict, dataset: Dataset) -> None:
    """Writes config.json, and dataset.json with the names of the classes and the splits' sizes."""
    about = {
        "class_names": dataset.class_names,
        "superclass_names": dataset.superclass_names,
        "superclass_of": dataset.superclass_of,
        "image_size": dataset.image_size,
        "examples": {name: len(split.labels) for name, split in dataset.splits.items()},
    }
    write(workdir / "config.json", config_json(config))
    write(workdir / "dataset.json", json.dumps(about, indent=2) + "\n")


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Creates the workdir, or checks that it is writable and holds no run of another config.

    A run that has no checkpoint yet, for example because its loss became NaN, may start again with
    other settings.

    Raises:
        InputError: the workdir cannot be written, or holds a run of another config.
    """
    make_workdir(workdir)
    if not (workdir / "config.json").exists():
        return
    if not any((workdir / "checkpoints").glob("[0-9]*")):
        return
    old = flattened(json.loads(config_json(saved_config(workdir))))
    new = flattened(json.loads(config_json(config)))
    differing = [
        f"  {key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(set(old) | set(new))
        if old.get(key) != new.get(key) and key not in FREE
    ]
    if [line.partition(":")[0].strip() for line in differing] == ["num_epochs"]:
        _check_extension(workdir, old["num_epochs"], config)
    elif differing:
        raise InputError(
            f"workdir {str(workdir)!r} holds a run with another config:\n"
            + "\n".join(differing)
            + "\nChoose another --workdir, set these values back, or delete the folder."
        )


def _check_extension(workdir: Path, epochs: int, config: ConfigDict) -> None:
    """More epochs only continue a run if its learning rate so far does not depend on them.

    Raises:
        InputError: they would not, or there are fewer than before.
    """
    schedule = config.schedule.name
    if config.num_epochs < epochs:
        raise InputError(
            f"workdir {str(workdir)!r} holds a run of {epochs} epochs; num_epochs="
            f"{config.num_epochs} is fewer. Choose another --workdir, or a larger number"
        )
    if schedule in ("cosine", "onecycle"):
        raise InputError(
            f"workdir {str(workdir)!r} holds a run of {epochs} epochs; with {config.num_epochs}, "
            f"its {schedule} learning rate would differ from the first step on. Start a new run "
            f"from its weights: --workdir=NEW --init_from={workdir}"
        )


def make_workdir(workdir: Path) -> None:
    """Creates the workdir, or checks that it can be written.

    Raises:
        InputError: it cannot.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{socket.gethostname()}-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"workdir {str(workdir)!r} cannot be written ({error.strerror}); "
            "choose another with --workdir"
        ) from error


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Locks a workdir for this process; the system releases the lock when the process ends.

    If no run began, because its input was rejected, nothing is left behind.

    Raises:
        InputError: another process holds the lock; the error names its host and process number.
    """
    holder = workdir / ".lock_holder"
    held = FileLock(workdir / ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        name = holder.read_text() if holder.exists() else "another process"
        raise InputError(
            f"workdir {str(workdir)!r} is being written by {name}; wait for it, stop it, or choose "
            "another --workdir"
        ) from error
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        if not (workdir / "config.json").exists():
            holder.unlink(missing_ok=True)
            (workdir / ".lock").unlink(missing_ok=True)
        held.release()


def write(path: Path, text: str) -> None:
    """Writes a file atomically: all of it or nothing.

    Raises:
        RunError: it could not be written.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        partial.write_text(text)
        partial.replace(path)


def add_line(path: Path, line: dict[str, Any]) -> None:
    """Adds a line of JSON to a file.

    Raises:
        RunError: it could not be written.
    """
    with writing(path), path.open("a") as file:
        file.write(json.dumps(line) + "\n")


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


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns any failure to write to a path into one error that names the path and the free space.

    Raises:
        RunError: it could not be written.
    """
    try:
        yield
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: Exception) -> RunError:
    """The error for a file or folder that could not be written."""
    free = shutil.disk_usage(path if path.is_dir() else path.parent).free
    return RunError(
        f"{path} could not be written: {error}\n{free / 2**20:,.0f} MiB are free there. Older "
        "checkpoints are left as they are; make room and run the same command again."
    )
