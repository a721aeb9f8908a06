"""Errors for bad input and broken runs, which suggest the nearest known name."""

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Input that breaks a rule; the text names the value, the rule and the fix.

    Attributes:
        fix: the setting's path, or `workdir`, and a value that obeys the rule, if one is known.
    """

    def __init__(self, text: str, fix: tuple[str, Any] | None = None):
        super().__init__(text)
        self.fix = fix


class Busy(InputError):
    """Another process writes to the workdir; the text names it."""


class RunError(Exception):
    """A run that cannot continue; the text says what happened, what is left, and what to do."""


class Stopped(Exception):
    """A signal stopped the run, which has saved its state.

    Attributes:
        status: the exit status to end with, 128 + the signal's number.
    """

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status


def first_line(error: object, most: int = 200) -> str:
    r"""The first line of an exception's message, or its type if the message is empty.

    Examples:
        >>> first_line(ValueError("no such file\nfor this reason")), first_line(EOFError())
        ('no such file', 'EOFError')
    """
    return (str(error).splitlines() or [type(error).__name__])[0][:most]


def unknown_name(kind: str, value: object, known: Iterable[object]) -> InputError:
    """An error for a name that is not among the known ones.

    Args:
        kind: what the name stands for, such as `"model"`.
        value: the name that was given.
        known: the names that exist.

    Returns:
        The error to raise; it lists `known` and, where one is close, the nearest.

    Examples:
        >>> print(unknown_name("objective", "gin", ["ce", "gini"]))
        unknown objective 'gin'; did you mean 'gini'? Known: ce, gini.
    """
    names = sorted(str(name) for name in known)
    nearest = difflib.get_close_matches(str(value).lower(), names, n=1)
    hint = f"; did you mean {nearest[0]!r}? " if nearest else ". "
    label = "Known"
    if len(names) > 30:
        close = difflib.get_close_matches(str(value).lower(), names, n=8, cutoff=0.4)
        label, names = ("Nearest", close) if close else ("Some known names", names[:8])
    return InputError(f"unknown {kind} {str(value)!r}{hint}{label}: {', '.join(names)}.")


def lacking(error: ModuleNotFoundError) -> str:
    """What to install if a module that the training code base requires is missing."""
    return (
        f"the module {error.name} is not installed; training, and opening trained networks, need "
        'more packages than the losses do: pip install "gini_jax[train]", or in a clone '
        "pip install -r requirements.txt"
    )
