"""From an error that suggests a setting to the whole command that works."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from gini_jax.config_files import set_value, written
from gini_jax.errors import InputError
from gini_jax.training.experiment import check_before_data

_SUGGESTED = re.compile(r"--config\.([\w.]+)=([\w.+-]*\w)")
_WORKDIR = re.compile(r"such as --workdir=(\S+)(?=, set these)")
_PLACEHOLDER = re.compile("[A-Z_]+")


def suggestion(text: str) -> tuple[str, str] | None:
    """The first setting that an error suggests, and its value; None if it suggests none.

    Examples:
        >>> suggestion("loss.start_epoch=10 lies after the end; set --config.loss.start_epoch=1.")
        ('loss.start_epoch', '1')
        >>> suggestion("set --config.name=NAME, or --workdir")
    """
    found = [pair for pair in _SUGGESTED.findall(text) if not _PLACEHOLDER.fullmatch(pair[1])]
    return found[0] if found else None


def repaired(argv: Sequence[str], config: ConfigDict, error: InputError) -> str:
    """The command with what an error suggests, and what the checks then suggest; "" if nothing.

    Args:
        argv: the command that ended in the error.
        config: its config.
        error: what it ended in.
    """
    config, fixes, text = config.copy_and_resolve_references(), {}, str(error)
    if workdir := _WORKDIR.search(text):
        return _command(argv, {}, workdir[1])
    for _ in range(8):
        found = suggestion(text)
        if found is None or found[0] in fixes:
            return ""
        path, value = found
        fixes[path] = value
        try:
            set_value(config, path, value, written)
        except InputError:  # a setting of a mode, or of another network
            return ""
        try:
            check_before_data(config)
        except InputError as error:
            text = str(error)
            continue
        return _command(argv, fixes)
    return ""


def _command(argv: Sequence[str], fixes: dict[str, str], workdir: str = "") -> str:
    """A command line with other values of some settings, or another workdir.

    Examples:
        >>> _command(["launch.py", "--config=digits", "--config.seed", "1"], {"seed": "2"})
        'python launch.py --config=digits --config.seed=2'
    """
    from gini_jax.training.members import without

    flags = [f"config.{path}" for path in fixes] + (["workdir"] if workdir else [])
    kept = without(argv[1:], flags)
    added = [f"--config.{path}={value}" for path, value in fixes.items()]
    added += [f"--workdir={workdir}"] if workdir else []
    program = ["python", argv[0]] if argv[0].endswith(".py") else [Path(argv[0]).name]
    return shlex.join([*program, *kept, *added])
