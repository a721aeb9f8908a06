"""A setting and its rules: what a row of a table of settings holds."""

import dataclasses
import functools
import importlib
import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict


class Setting(NamedTuple):
    """A row of the table.

    Attributes:
        default: its type is the setting's type.
        meaning: for the help text.
        choices: the known values, or `"module:TABLE"`, whose keys they are.
        bounds: an interval such as `"[0, 1)"`.
        own: `"module:function"` that finds a part of one's own, `module:Name`, if that is a value
            too; see `parts.find`.
        read_if: whether a run of this config reads the setting; None: each does.
    """

    default: Any
    meaning: str
    choices: tuple[Any, ...] | str = ()
    bounds: str = ""
    own: str = ""
    read_if: Callable[[Any], Any] | None = None

    def known(self) -> tuple[Any, ...]:
        """The choices, looked up where they are defined."""
        return tuple(named(self.choices)) if isinstance(self.choices, str) else self.choices

    def find(self, name: str) -> Any:
        """A part of one's own; see `own`."""
        return named(self.own)(name)


def named(place: str) -> Any:
    """What `"module:name"` stands for.

    Examples:
        >>> named("math:pi")
        3.141592653589793
    """
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


ANY, POSITIVE, COUNT, SHARE = "(-inf, inf)", "(0, inf)", "[1, inf)", "[0, 1]"
NOT_NEGATIVE, BELOW_1 = "[0, inf)", "[0, 1)"
SEED = "[0, 4294967295]"  # of jax, 32 bits


def setting(default: Any, meaning: str, **rules: Any) -> Any:
    """A field of a network's module that is a setting `model.<field>`, with its rules.

    Examples:
        >>> @dataclasses.dataclass
        ... class Network:
        ...     width: int = setting(64, "channels of the first stage", bounds=COUNT)
        >>> Network().width
        64
    """
    row = Setting(default, meaning, **rules)
    return dataclasses.field(default=default, metadata={"setting": row})


@functools.cache
def arguments_as_settings(function: Callable[..., Any]) -> dict[str, Setting]:
    """The arguments of a function, or of a class, whose default is a number or a word.

    The meaning comes from the docstring, choices from `Literal`, bounds from
    `Annotated[float, "(0, inf)"]`.

    Examples:
        >>> from gini_jax.losses import supcon_loss
        >>> row = arguments_as_settings(supcon_loss)["temperature"]
        >>> row.default, row.meaning, row.bounds
        (0.1, 'what cosines are divided by.', '(0, inf)')
    """
    from docstring_parser import parse  # here alone: few runs read a term's settings

    arguments = parse(inspect.getdoc(function) or "").params
    meanings = {argument.arg_name: argument.description for argument in arguments}
    rows = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if not isinstance(parameter.default, (int, float, str)):
            continue
        kind = parameter.annotation
        rules = {typing.get_origin(k): typing.get_args(k) for k in (kind, *typing.get_args(kind))}
        rows[name] = Setting(
            parameter.default,
            " ".join((meanings.get(name) or "").split()),
            choices=rules.get(typing.Literal, ()),
            bounds=next(iter(getattr(kind, "__metadata__", ())), ""),
        )
    return rows


def in_bounds(value: float | Sequence[float], bounds: str) -> bool:
    """Whether a finite number, or each number of several, lies in an interval.

    Examples:
        >>> in_bounds(0, "[0, 1)"), in_bounds(1, "[0, 1)"), in_bounds(math.inf, "[0, inf)")
        (True, False, False)
    """
    if isinstance(value, Sequence):
        return all(in_bounds(one, bounds) for one in value)
    low, high = (float(end) for end in bounds[1:-1].split(","))
    above = value > low or (value == low and bounds[0] == "[")
    below = value < high or (value == high and bounds[-1] == "]")
    return math.isfinite(value) and above and below


def with_tuples(value: Any) -> Any:
    """A value in which each list, such as those from JSON, is a tuple, which can be hashed.

    Examples:
        >>> with_tuples({"stages": [[1, 16], [6, 24]]})
        {'stages': ((1, 16), (6, 24))}
    """
    if isinstance(value, (list, tuple)):
        return tuple(map(with_tuples, value))
    if isinstance(value, Mapping):
        return {key: with_tuples(one) for key, one in value.items()}
    return value


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config by path.

    Examples:
        >>> flattened({"seed": 0, "loss": {"terms": {"kl": 1.0}}})
        {'seed': 0, 'loss.terms.kl': 1.0}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        is_section = isinstance(value, (Mapping, ConfigDict))
        flat |= flattened(value, f"{path}.") if is_section else {path: value}
    return flat
