"""Parts of a run by name: those of the package, and `module:Name`, parts of one's own."""

import contextlib
import dataclasses
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from gini_jax.errors import InputError, first_line, unknown_name
from gini_jax.settings import Setting

# Sections in which a name picks a component, and where the rows that it brings come from.
SECTIONS = {
    "model": "gini_jax.models.registry:model_rows",
    "optimizer": "gini_jax.training.optim:optimizer_rows",
    "schedule": "gini_jax.training.schedules:schedule_rows",
}


def find(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """A part of a run: a row of a table, or `module:Name`, which is imported.

    Modules are looked for where Python looks, and in the working folder.

    Args:
        kind: what the name stands for, as in `schedule.name`.
        name: of the part.
        table: the parts of the package, by name.

    Raises:
        InputError: there is no such part, or its module cannot be imported.

    Examples:
        >>> find("constant", "math:pi", {})
        3.141592653589793
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
    return getattr(found, own)


def rows_of(component: Any) -> dict[str, Setting]:
    """A component's own settings: the fields of its dataclass that `setting` declares.

    Examples:
        >>> from gini_jax.training.schedules import Cosine
        >>> rows_of(Cosine)["final"].default
        0.0
    """
    if not dataclasses.is_dataclass(component):
        return {}
    fields = dataclasses.fields(component)
    return {f.name: f.metadata["setting"] for f in fields if "setting" in f.metadata}


def create(kind: str, config: Mapping[str, Any], table: Mapping[str, Any]) -> Any:
    """The component that a section of the config names, with the settings that are its own.

    Args:
        kind: what the name stands for.
        config: the section; `config["name"]` is the component's.
        table: the package's components, by name.

    Raises:
        InputError: there is no such component, or it refuses a setting.
    """
    component = find(kind, config["name"], table)
    return component(**{key: config[key] for key in rows_of(component)})


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
    module, _, function = SECTIONS[section].partition(":")
    return getattr(importlib.import_module(module), function)(name)


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
