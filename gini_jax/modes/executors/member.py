"""Trains one member of a sweep, in this process or in a separate one."""

import contextlib
import json
import os
import sys
import traceback
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from gini_jax import devices
from gini_jax.config.files import from_saved
from gini_jax.errors import Busy, Stopped
from gini_jax.modes import train
from gini_jax.storage import add, log_file
from gini_jax.training.experiment import check_before_data

BUSY = 75  # exit status if another process is training the member
ENDED = "member ended: "  # begins the line that gives the reason


def run_member(config: ConfigDict, folder: Path) -> None:
    """Trains a member; what it prints goes to log.txt in its folder.

    Raises:
        Busy: another process is training it.
        Stopped: after a signal.
        Exception: the error that ended it, which is in log.txt too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_before_data(config)
    try:
        with (
            log_file(folder / "log.txt") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            train.main(config, folder)
    except Busy as error:
        raise Busy("is being trained by another process; skipped") from error
    except Stopped:
        raise
    except Exception:
        add(folder / "log.txt", traceback.format_exc())
        raise


def import_path() -> str:
    """`PYTHONPATH` for a process that has to find this package, installed or not."""
    root = str(Path(__file__).resolve().parents[3])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))


def run_process(folder: str) -> int:
    """Trains the member whose config is on standard input; returns the exit status."""
    logging.set_verbosity(logging.WARNING)
    devices.prepare_cpu()
    config = from_saved(json.loads(sys.stdin.read()))
    try:
        run_member(config, Path(folder))
    except Stopped as stopped:
        return stopped.status
    except Busy as busy:
        print(f"\n{ENDED}{busy}", file=sys.stderr)
        return BUSY
    except Exception as error:
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(f"\n{ENDED}{text}", file=sys.stderr)
        return 1
    return 0
