"""Parts of a run by name: those of the package, and `module:Name`, parts of one's own."""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gini_jax.errors import InputError, first_line, unknown_name


def find(
    kind: str,
    name: str,
    table: Mapping[str, Any],
    fits: Callable[[Any], bool] = callable,
    what: str = "something to call",
) -> Any:
    """A part of a run: a row of a table, or `module:Name`, which is imported.

    Modules are looked for where Python looks, and in the working folder.

    Args:
        kind: what the name stands for, as in `schedule.name`.
        name: of the part.
        table: the parts of the package, by name.
        fits: whether what `module:Name` stands for is such a part.
        what: such a part is, in words.

    Raises:
        InputError: there is no such part, it is something else, or its module cannot be imported.

    Examples:
        >>> find("function", "math:sqrt", {})(4.0)
        2.0
        >>> find("function", "math:pi", {})
        Traceback (most recent call last):
        gini_jax.errors.InputError: function='math:pi' is 3.14..., but must be something to call...
        >>> find("function", "math:sqr", {})
        Traceback (most recent call last):
        gini_jax.errors.InputError: unknown function in module math 'sqr'; did you mean 'sqrt'? ...
    """
    if name in table:
        return table[name]
    module, colon, own = name.partition(":")
    if not colon:
        raise unknown_name(kind, name, table)
    try:
        with _working_folder():
            found = importlib.import_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # what a user's module raises when it is imported
        raise InputError(
            f"{kind}={name!r} is a part of one's own, and its module {module!r} cannot be imported "
            f"({type(error).__name__}: {first_line(error)}); start where {module}.py lies, or "
            "install it"
        ) from error
    if not hasattr(found, own):
        there = {k: v for k, v in vars(found).items() if not k.startswith("_")}
        made = [k for k, v in there.items() if getattr(v, "__module__", None) == module]
        raise unknown_name(f"{kind} in module {module}", own, made or there)
    part = getattr(found, own)
    if not fits(part):
        raise InputError(
            f"{kind}={name!r} is {first_line(repr(part))}, but must be {what}; docs/extending.md "
            "shows one"
        )
    return part


@contextlib.contextmanager
def _working_folder() -> Iterator[None]:
    """Python also looks for modules in the working folder, after all other places."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
