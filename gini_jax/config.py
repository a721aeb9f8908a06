"""The config of a run: every setting at its default, and how parts of it are exchanged."""

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from gini_jax.components import OPTIONS, SECTIONS, component_rows, option_rows
from gini_jax.errors import InputError, unknown_name
from gini_jax.settings import Setting, flattened
from gini_jax.table import SETTINGS, WEIGHT, WEIGHTS


def default_config(objective: str | None = None) -> ConfigDict:
    """Every setting of a run, to be changed by a file in configs/ and by the command line.

    Args:
        objective: what follows the colon in `--config=FILE:objective`; `gini_kl` by default.

    Returns:
        A ConfigDict, not yet checked; `check_config` does that once all changes are made.

    Raises:
        InputError: the objective is unknown.

    Examples:
        >>> default_config("gini").loss.terms.to_dict()
        {'gini': 0.5}
    """
    config = ConfigDict()
    for path, row in SETTINGS.items():
        section, _, key = path.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        (config[section] if section else config)[key] = row.default
    from gini_jax.data.augment import augment_rows

    config.loss.options = ConfigDict()
    config.augment.update({name: row.default for name, row in augment_rows().items()})
    for section in SECTIONS:
        set_component(config, section, config[section].name)
    set_objective(config, objective or config.objective)
    return config


def set_objective(config: ConfigDict, objective: str) -> None:
    """Sets the terms of a preset.

    Raises:
        InputError: the objective is unknown.

    Examples:
        >>> config = default_config()
        >>> set_objective(config, "ce")
        >>> config.loss.terms.to_dict()
        {}
    """
    from gini_jax.losses.terms import PRESETS

    if objective not in PRESETS:
        raise unknown_name("objective", objective, PRESETS)
    config.objective = objective
    with config.unlocked():
        config.loss.terms = term_weights(PRESETS[objective])


def term_weights(weights: Mapping[str, Any]) -> ConfigDict:
    """Weights of terms as a section, in which a number and numbers for layers may change places.

    Examples:
        >>> terms = term_weights({"gini": 0.5})
        >>> terms.gini = {"stage3": 0.1, "stage4": 0.5}
        >>> terms.gini.stage4
        0.5
    """
    return ConfigDict(dict(weights), type_safe=False)


def set_component(config: ConfigDict, section: str, name: str, **settings: Any) -> None:
    """Sets the network, the schedule or the optimiser.

    Its own settings replace those of the one before; those that all have stay as they are.

    Args:
        config: the settings of a run.
        section: `model`, `schedule` or `optimizer`.
        name: of the component.
        **settings: settings of the section that change.

    Raises:
        InputError: the name or a setting is unknown.

    Examples:
        >>> config = default_config()
        >>> set_component(config, "schedule", "step", boundaries=(60,))
        >>> "final" in config.schedule, config.schedule.factor
        (False, 0.2)
    """
    rows, of_all = component_rows(section, name), _of_all(section)
    if clashes := sorted(rows.keys() & of_all):
        raise InputError(
            f"{section}.name={name!r} has a setting {clashes[0]!r}, which every {section} has; "
            "give it another name"
        )
    for key in settings:
        if key not in rows and key not in of_all:
            raise unknown_name(f"setting of {section} {name}", key, [*rows, *of_all])
    own = config[section]
    with config.unlocked():
        for key in set(own) - of_all:
            del own[key]
        own.update({"name": name, **{key: row.default for key, row in rows.items()}, **settings})


def set_model(config: ConfigDict, name: str, **settings: Any) -> None:
    """Sets the network; see `set_component`.

    Examples:
        >>> config = default_config()
        >>> set_model(config, "cvt13", drop_path=0.2)
        >>> "stem" in config.model, config.model.drop_path
        (False, 0.2)
    """
    set_component(config, "model", name, **settings)


def _of_all(section: str) -> set[str]:
    """The settings of a section that all its components have."""
    return {path.partition(".")[2] for path in SETTINGS if path.startswith(f"{section}.")}


def all_rows(config: ConfigDict) -> dict[str, Setting]:
    """The rows of every setting of a config, by path."""
    from gini_jax.data.augment import augment_rows

    own = {
        f"{section}.{key}": row
        for section in SECTIONS
        for key, row in component_rows(section, config[section].name).items()
    }
    own |= {f"augment.{name}": row for name, row in augment_rows(config.augment).items()}
    terms = {f"{WEIGHTS}{path}": WEIGHT for path in flattened(config.loss.terms)}
    given = [path for path in flattened(config) if path.startswith(OPTIONS)]
    known = option_rows(config.loss.terms) if given else {}
    rows = SETTINGS | own | terms | {path: known[path] for path in given if path in known}
    sections = list(dict.fromkeys(path.rpartition(".")[0] for path in SETTINGS))
    order = {section: i for i, section in enumerate(sections)}
    last = len(order)
    return dict(sorted(rows.items(), key=lambda row: order.get(row[0].rpartition(".")[0], last)))


def set_option(config: ConfigDict, path: str, value: Any) -> None:
    """Sets one of the terms' own settings; see `components.option_rows`.

    Examples:
        >>> config = default_config("supcon")
        >>> set_option(config, "loss.options.supcon.temperature", 0.2)
        >>> config.loss.options.to_dict()
        {'supcon': {'temperature': 0.2}}
    """
    _, term, key = path.removeprefix("loss.").split(".")
    with config.unlocked():
        if term not in config.loss.options:
            config.loss.options[term] = ConfigDict()
        config.loss.options[term][key] = value


class _CallableModule(ModuleType):
    """So that `gini_jax.config("digits:ce", num_epochs=5)` calls `gini_jax.api.config`."""

    def __call__(self, name: str = "digits", /, **settings: Any) -> ConfigDict:
        return importlib.import_module("gini_jax.api").config(name, **settings)


sys.modules[__name__].__class__ = _CallableModule
