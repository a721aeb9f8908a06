"""Command line of gini_jax: trains or evaluates the run that a config tells.

    python launch.py
    python launch.py --config=configs/cifar100_resnet18.py:gini_kl --workdir=runs/r18
    python launch.py --mode=eval --workdir=runs/r18
"""

import json
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from gini_jax.errors import InputError, unknown_name

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/digits.py", "Experiment and, after a colon, its objective."
)
_MODE = flags.DEFINE_string("mode", "train", "train or eval.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/CONFIG by default.")


def _config_of(workdir: Path, default: ConfigDict) -> ConfigDict:
    """The config that a workdir was trained with, or the one of the command line."""
    path = workdir / "config.json"
    if flags.FLAGS["config"].present or not path.exists():
        return default
    config = default.copy_and_resolve_references()
    with config.unlocked():
        config.update(json.loads(path.read_text()))
    return config


def main(argv: list[str]) -> None:
    """Runs the chosen mode."""
    if len(argv) > 1:
        raise InputError(f"unknown argument {argv[1]!r}; settings are --config.KEY=VALUE")
    from gini_jax import train  # jax starts here, after the command line has been read

    modes = {"train": train.train, "eval": train.evaluate}
    if _MODE.value not in modes:
        raise unknown_name("mode", _MODE.value, modes)
    workdir = Path(_WORKDIR.value or f"runs/{_CONFIG.value.name}")
    config = _CONFIG.value if _MODE.value == "train" else _config_of(workdir, _CONFIG.value)
    modes[_MODE.value](config, workdir)


def _report_and_exit(error: Exception) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=lambda argv: flags.FLAGS(argv))
    except (InputError, flags.Error, AttributeError) as error:
        _report_and_exit(error)
