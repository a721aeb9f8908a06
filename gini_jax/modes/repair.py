"""Turns an error that carries a fix into a complete corrected command."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gini_jax.config.change import set_value
from gini_jax.errors import InputError
from gini_jax.modes.members import without
from gini_jax.training.experiment import check_before_data


def repaired(argv: Sequence[str], config: ConfigDict, error: InputError) -> str:
    """The command with an error's fix, and those of further errors; "" if one has no fix.

    Args:
        argv: the command that raised the error.
        config: the command's config.
        error: the error.
    """
    config, fixes = config.copy_and_resolve_references(), dict[str, Any]()
    found: InputError | None = error
    while found is not None:
        if found.fix is None or found.fix[0] in fixes:
            return ""
        path, value = found.fix
        fixes[path] = value
        if path == "workdir":
            break
        try:
            set_value(config, path, value)
            found = None
            check_before_data(config)
        except InputError as next_error:
            found = next_error
    return _command(argv, fixes)


def _command(argv: Sequence[str], fixes: dict[str, Any]) -> str:
    """A command line with other values of some settings, or another workdir.

    Examples:
        >>> _command(["launch.py", "--config=digits", "--config.seed", "1"], {"seed": 2})
        'python launch.py --config=digits --config.seed=2'
    """
    flags = {path: path if path == "workdir" else f"config.{path}" for path in fixes}
    kept = without(argv[1:], list(flags.values()))
    added = [f"--{flags[path]}={value}" for path, value in fixes.items()]
    program = ["python", argv[0]] if argv[0].endswith(".py") else [Path(argv[0]).name]
    return shlex.join([*program, *kept, *added])
