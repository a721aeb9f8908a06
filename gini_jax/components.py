"""The settings that parts of a run bring to the config, by the parts' names."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from gini_jax.settings import Setting, arguments_as_settings, named

# Sections in which a name picks a component, and what finds it.
SECTIONS = {
    "model": "gini_jax.models.registry:network_of",
    "optimizer": "gini_jax.training.optim:optimizer_class",
    "schedule": "gini_jax.training.schedules:schedule_class",
}

# Where the terms' own settings are; see `option_rows`.
OPTIONS = "loss.options."


def rows_of(component: Any) -> dict[str, Setting]:
    """A component's own settings.

    They are its `rows`; or its dataclass's fields that `setting` declares; or the arguments of a
    function, or another class, whose default is a number or a word.

    Examples:
        >>> from gini_jax.training.schedules import Cosine
        >>> rows_of(Cosine)["final"].default
        0.0
    """
    if hasattr(component, "rows"):
        return component.rows
    if not dataclasses.is_dataclass(component):
        return arguments_as_settings(component)
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

    entries = {term: entry_of(term) for term in (*TERMS, *own)}
    return {
        f"{OPTIONS}{term}.{key}": row
        for term, entry in entries.items()
        if entry.part
        for key, row in rows_of(entry.part).items()
        if key not in entry.given
    }
