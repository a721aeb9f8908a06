"""What can be chosen in a config: components by name, and the settings that they declare.

A component is a function or a class. Its arguments whose default is a number, a string, a bool or a
tuple are its settings. Each declares its rule in its annotation, `Annotated[float, "(0, inf)"]` or
`Literal["relu", "gelu"]`, and its meaning in the docstring.
"""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import math
import os
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from gini_jax.errors import InputError, first_line, unknown_name

ANY, POSITIVE, COUNT, SHARE = "(-inf, inf)", "(0, inf)", "[1, inf)", "[0, 1]"
NOT_NEGATIVE, BELOW_1 = "[0, inf)", "[0, 1)"
SEED = "[0, 4294967295]"  # of jax, 32 bits
Positive: TypeAlias = Annotated[float, POSITIVE]
NotNegative: TypeAlias = Annotated[float, NOT_NEGATIVE]
Share: TypeAlias = Annotated[float, SHARE]
Below1: TypeAlias = Annotated[float, BELOW_1]
Count: TypeAlias = Annotated[int, COUNT]
Counts: TypeAlias = Annotated[Sequence[int], COUNT]
FloatType: TypeAlias = Literal["float32", "bfloat16"]


class Setting(NamedTuple):
    """A setting and its rules.

    Attributes:
        default: its type is the setting's type.
        meaning: for the help text.
        choices: the known values, or the registry of what the value names.
        bounds: an interval such as `"[0, 1)"`.
        read_if: whether a run of this config reads the setting; None: each does.
    """

    default: Any
    meaning: str
    choices: "tuple[Any, ...] | Registry" = ()
    bounds: str = ""
    read_if: Callable[[Any], Any] | None = None

    def accepts(self, name: Any) -> bool:
        """Whether a value is one of the choices, or a plugin.

        Raises:
            InputError: it is a plugin that cannot be imported.
        """
        if isinstance(self.choices, Registry) and ":" in str(name):
            self.choices.find(name)
            return True
        return not self.choices or name in tuple(self.choices)


class Registry(Mapping[str, Any]):
    """The components of one kind by name: those of the package, and plugins.

    A plugin is `package.module:Name`. Its module is looked for where Python looks, and in the
    working folder.

    Args:
        setting: whose value is the name, for errors, such as `schedule.name`.
        table: the components of the package; `package.module:Name`, or `package.module`, is
            imported when it is first used.
        fits: whether the object that a plugin names is a component of this kind.
        what: a description of such a component, for error messages.
        adapt: a function that converts a plugin to an entry of the table.

    Examples:
        >>> functions = Registry("function", {"root": math.sqrt})
        >>> functions.find("root") is functions.find("math:sqrt")
        True
        >>> functions.find("math:pi")
        Traceback (most recent call last):
        gini_jax.errors.InputError: function='math:pi' is 3.14..., but must be something to call...
        >>> functions.find("math:sqr")
        Traceback (most recent call last):
        gini_jax.errors.InputError: unknown function in module math 'sqr'; did you mean 'sqrt'? ...
    """

    def __init__(
        self,
        setting: str,
        table: dict[str, Any],
        fits: Callable[[Any], bool] = callable,
        what: str = "something to call",
        adapt: Callable[[Any], Any] = lambda part: part,
    ):
        self.setting, self._table = setting, table
        self._fits, self._what, self._adapt = fits, what, adapt

    def __getitem__(self, name: str) -> Any:
        found = self._table[name]
        if isinstance(found, str):  # a component that is imported when it is first used
            module, colon, own = found.partition(":")
            there = importlib.import_module(module)
            found = self._table[name] = self._adapt(getattr(there, own) if colon else there)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def find(self, name: str) -> Any:
        """A component by its name.

        Raises:
            InputError: there is no such component, it is something else, or its module cannot be
                imported.
        """
        if name in self._table:
            return self[name]
        module, colon, own = name.partition(":")
        if not colon:
            raise unknown_name(self.setting, name, self._table)
        found = _imported(self.setting, name, module)
        if not hasattr(found, own):
            there = {k: v for k, v in vars(found).items() if not k.startswith("_")}
            made = [k for k, v in there.items() if getattr(v, "__module__", None) == module]
            raise unknown_name(f"{self.setting} in module {module}", own, made or there)
        part = getattr(found, own)
        if not self._fits(part):
            raise InputError(
                f"{self.setting}={name!r} is {first_line(repr(part))}, but must be {self._what}; "
                "docs/extending.md shows one"
            )
        return self._adapt(part)

    def settings(self, name: str) -> dict[str, Setting]:
        """The settings of a component by its name."""
        return settings_of(self.find(name))

    def create(self, section: Mapping[str, Any]) -> Any:
        """The component that a section of a config names, called with its settings there."""
        found = self.find(section["name"])
        return found(**{key: section[key] for key in settings_of(found)})

    def having(self, key: str) -> list[str]:
        """The components of the package that have a setting.

        Examples:
            >>> Registry("function", {"round": lambda x, digits=0: x}).having("digits")
            ['round']
        """
        return [name for name in self if key in self.settings(name)]


def _imported(setting: str, name: str, module: str) -> Any:
    """Imports a plugin's module; Python searches the working folder last."""
    folder = os.getcwd()
    added = folder not in sys.path and "" not in sys.path
    try:
        sys.path.extend([folder] * added)
        return importlib.import_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # what a user's module raises when it is imported
        raise InputError(
            f"{setting}={name!r} is a plugin, and its module {module!r} cannot be imported "
            f"({type(error).__name__}: {first_line(error)}); start where "
            f"{module.replace('.', '/')}.py lies, or install it"
        ) from error
    finally:
        if added:
            with contextlib.suppress(ValueError):
                sys.path.remove(folder)


_NOT_SETTINGS = {"parent", "name", "num_classes", "axis_name", "axis"}


def settings_of(component: Any) -> dict[str, Setting]:
    """The settings that a component declares: its `settings`, or else its arguments.

    Examples:
        >>> from gini_jax.losses import supcon_loss
        >>> row = settings_of(supcon_loss)["temperature"]
        >>> row.default, row.meaning, row.bounds
        (0.1, 'what cosines are divided by.', '(0, inf)')
    """
    declared = getattr(component, "settings", None)
    return dict(declared) if isinstance(declared, Mapping) else _arguments(component)


@functools.cache
def _arguments(component: Callable[..., Any]) -> dict[str, Setting]:
    try:
        parameters = inspect.signature(component).parameters
    except (TypeError, ValueError):  # such as a module, or a function of C
        return {}
    rows = {}
    for name, parameter in parameters.items():
        default, (choices, bounds) = parameter.default, rule_of(parameter.annotation)
        if default is None and bounds == COUNT:  # as a setting, 0 stands for None
            default, bounds = 0, NOT_NEGATIVE
        if name not in _NOT_SETTINGS and isinstance(default, (int, float, str, tuple)):
            rows[name] = Setting(default, "", choices, bounds)
    if not rows:
        return {}
    meanings = _meanings(component)
    return {name: row._replace(meaning=meanings.get(name, "")) for name, row in rows.items()}


def _meanings(component: Any) -> dict[str, str]:
    """What the docstring says of each argument."""
    from docstring_parser import parse  # imported late: the losses need only jax

    found = {}
    for base in reversed(getattr(component, "__mro__", [component])):
        for argument in parse(inspect.getdoc(base) or "").params:
            found[argument.arg_name] = " ".join((argument.description or "").split())
    return found


def rule_of(annotation: Any) -> tuple[tuple[Any, ...], str]:
    """The choices of a `Literal`, and the bounds of an `Annotated`.

    Examples:
        >>> rule_of(Positive), rule_of(Literal["hard", "all"])
        (((), '(0, inf)'), (('hard', 'all'), ''))
    """
    kinds = (annotation, *typing.get_args(annotation))
    choices = [typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is Literal]
    bounds = getattr(annotation, "__metadata__", ("",))[0]
    return (choices[0] if choices else ()), bounds


def is_callable_dataclass(part: Any) -> bool:
    """Whether a component is a dataclass whose instances can be called.

    Examples:
        >>> is_callable_dataclass(len)
        False
    """
    return isinstance(part, type) and dataclasses.is_dataclass(part) and "__call__" in dir(part)


@dataclasses.dataclass
class Settings:
    """The settings of all configs; `gini_jax.config.defaults` fills it.

    Attributes:
        rows: the settings of every config, by path.
        sections: by section, the registry from which the section's `name` picks a component.
        keyed: by section, the registry of a section whose keys are components.
    """

    rows: dict[str, Setting] = dataclasses.field(default_factory=dict)
    sections: dict[str, Registry] = dataclasses.field(default_factory=dict)
    keyed: dict[str, Registry] = dataclasses.field(default_factory=dict)

    def of(self, config: Mapping[str, Any]) -> dict[str, Setting]:
        """The settings of a config, by path, section by section.

        Raises:
            InputError: the config names an unknown component.
        """
        rows = dict(self.rows)
        for section, registry in self.sections.items():
            own = registry.settings(at(config, section)["name"])
            rows |= {f"{section}.{key}": row for key, row in own.items()}
        for section, registry in self.keyed.items():
            for key, values in at(config, section).items():
                if (path := f"{section}.{key}") not in self.rows:
                    rows |= self.of_component(registry, path, key, values)
        order = {head: i for i, head in enumerate(dict.fromkeys(map(_head, self.rows)))}
        return dict(sorted(rows.items(), key=lambda row: order.get(_head(row[0]), len(order))))

    def of_component(
        self, registry: Registry, path: str, key: str, values: Any
    ) -> dict[str, Setting]:
        """The settings of one component in a section whose keys are components."""
        if not hasattr(values, "items"):  # an augmentation, which is one number
            return {path: next(iter(registry.settings(key).values()))}
        rows = registry.settings(values.get("name", key))
        found = {f"{path}.{name}": row for name, row in rows.items()}
        if hasattr(values.get("weight"), "items"):  # one for each layer
            weight = found.pop(f"{path}.weight")
            found |= {f"{path}.weight.{layer}": weight for layer in values["weight"]}
        if "name" in values:
            found[f"{path}.name"] = Setting("", f"the component that {path} uses", registry)
        return found


def _head(path: str) -> str:
    return ".".join(path.split(".")[:-1][:1])


SETTINGS = Settings()


def at(config: Any, path: str) -> Any:
    """The section, or the value, at a path.

    Examples:
        >>> at({"loss": {"terms": {}}}, "loss.terms")
        {}
    """
    return functools.reduce(lambda section, key: section[key], path.split("."), config)


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
    if hasattr(value, "items"):
        return {key: with_tuples(one) for key, one in value.items()}
    return value


def flattened(config: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a config by path.

    Examples:
        >>> flattened({"seed": 0, "loss": {"terms": {"kl": {"weight": 1.0}}}})
        {'seed': 0, 'loss.terms.kl.weight': 1.0}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        flat |= flattened(value, f"{path}.") if hasattr(value, "items") else {path: value}
    return flat
