"""Parts of a run by name: those of the package, and `module:Name`, parts of one's own."""

import contextlib
import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gini_jax.errors import InputError, first_line, unknown_name
from gini_jax.settings import Setting, named

# Sections in which a name picks a component, and what finds it.
SECTIONS = {
    "model": "gini_jax.models.registry:network_of",
    "optimizer": "gini_jax.training.optim:optimizer_class",
    "schedule": "gini_jax.training.schedules:schedule_class",
}

# Where the terms' own settings are; see `option_rows`.
OPTIONS = "loss.options."


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
    except Exception as error:  # what a user's module raises when it is imported
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


def rows_of(component: Any) -> dict[str, Setting]:
    """A component's own settings: its `rows`, or its dataclass's fields that `setting` declares.

    Examples:
        >>> from gini_jax.training.schedules import Cosine
        >>> rows_of(Cosine)["final"].default
        0.0
    """
    if hasattr(component, "rows"):
        return component.rows
    fields = dataclasses.fields(component)
    return {f.name: f.metadata["setting"] for f in fields if "setting" in f.metadata}


def create(component: Any, config: Mapping[str, Any]) -> Any:
    """A component with the settings that are its own, from its section of the config."""
    return component(**{key: config[key] for key in rows_of(component)})


def is_component(part: Any) -> bool:
    """Whether a part is a dataclass whose instances can be called.

    Examples:
        >>> is_component(len)
        False
    """
    return isinstance(part, type) and dataclasses.is_dataclass(part) and "__call__" in dir(part)


def component_rows(section: str, name: str) -> dict[str, Setting]:
    """The rows of the settings that a component brings to its section.

    Args:
        section: one of `SECTIONS`.
        name: of the component.

    Raises:
        InputError: the name is unknown.

    Examples:
        >>> list(component_rows("schedule", "step"))
        ['boundaries', 'factor']
    """
    return rows_of(named(SECTIONS[section])(name))


def option_rows(own: Iterable[str] = ()) -> dict[str, Setting]:
    """The rows of the terms' own settings, `loss.options.TERM.SETTING`, by path.

    A config holds those that differ from their defaults.

    Args:
        own: terms among which there may be some of one's own, `module:Name`.

    Examples:
        >>> option_rows()["loss.options.supcon.temperature"].default
        0.1
    """
    from gini_jax.losses.terms import TERMS, entry_of

    return {
        f"{OPTIONS}{term}.{key}": Setting(default, f"of the term {term}", choices)
        for term in dict.fromkeys([*TERMS, *own])
        for key, (default, choices) in entry_of(term).settings.items()
    }


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
