"""Values of settings as they are given: from Python, and as text on the command line."""

import ast
import math
from typing import Any

from gini_jax.errors import InputError


def fitting(path: str, value: Any, default: Any) -> Any:
    """A value converted to the type of its setting.

    Raises:
        InputError: it is of another type.

    Examples:
        >>> fitting("dataset.mean", "imagenet", ()), fitting("seed", 3, 0), fitting("x", 1, 0.5)
        (('imagenet',), 3, 1.0)
    """
    kind = type(default)
    if kind is tuple:
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1000 else math.inf  # no setting accepts infinity
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(
            f"{path}={value!r} has type {type(value).__name__}; it needs type {kind.__name__}, "
            f"such as --config.{path}={default!r}"
        )
    return value


def written(path: str, text: str, default: Any) -> Any:
    """The value that a text on the command line stands for.

    Raises:
        InputError: it is of another type than the setting.

    Examples:
        >>> written("loggers", "jsonl,wandb", ()), written("report", "false", True)
        (('jsonl', 'wandb'), False)
        >>> written("loss.layers", "('stage4',)", ()), written("name", "12", "")
        (('stage4',), '12')
    """
    if isinstance(default, str):
        return text
    if isinstance(default, tuple) and not text.strip():
        return ()
    if isinstance(default, bool):
        return fitting(path, _BOOLS.get(text.lower(), text), default)
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        value = tuple(text.split(",")) if isinstance(default, tuple) else text
    if isinstance(default, int) and isinstance(value, float) and value.is_integer():
        value = int(value)
    return fitting(path, value, default)


_BOOLS = {"true": True, "false": False, "1": True, "0": False}
