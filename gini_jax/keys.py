"""The names of settings: which a config may have, and what a wrong one should be."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from gini_jax.components import SECTIONS, component_rows, option_rows
from gini_jax.config import all_rows
from gini_jax.errors import InputError, unknown_name
from gini_jax.settings import flattened
from gini_jax.table import SETTINGS

RENAMED = {
    "loss.gini_weight": "loss.terms.gini",
    "loss.kl_weight": "loss.terms.kl",
    "loss.hold_shares": "loss.hold_gradient_ratios",
    "loss.terms.collision": "loss.terms.renyi, not divided by log K: divide the weight by log K",
}


def check_keys(config: ConfigDict) -> None:
    """Refuses keys that are not settings, such as a typo in a config file.

    Raises:
        InputError: names the key and the nearest setting.

    Examples:
        >>> from gini_jax.config import default_config
        >>> config = default_config()
        >>> with config.unlocked():
        ...     config.loss.start_epohc = 3
        >>> check_keys(config)
        Traceback (most recent call last):
        gini_jax.errors.InputError: unknown setting 'loss.start_epohc'; did you mean ...
    """
    from gini_jax.losses.terms import entry_of

    for section in SECTIONS:
        if section not in config or "name" not in config[section]:
            raise InputError(f"the config lacks '{section}.name'; start it from default_config()")
    for name in config.loss.terms:
        if (path := f"loss.terms.{name}") in RENAMED:
            raise unknown_setting(path, config)
        entry_of(name)
    rows = all_rows(config)
    there = flattened(config)
    for path in there:
        if path not in rows:
            raise unknown_setting(path, config)
    for path in rows:
        if path not in there:
            raise InputError(f"the config lacks {path!r}; start it from default_config()")


def unknown_setting(path: str, config: ConfigDict) -> InputError:
    """An error for a path that is no setting of a config.

    Examples:
        >>> from gini_jax.config import default_config
        >>> print(unknown_setting("schedule.factor", default_config()))
        unknown setting 'schedule.factor': it is one of step, and schedule.name is 'cosine'; ...
    """
    if path in RENAMED:
        return InputError(f"unknown setting {path!r}; it is now {RENAMED[path]}")
    section, _, key = path.partition(".")
    if section in SECTIONS and (names := having(section, [key]).get(key)):
        return InputError(
            f"unknown setting {path!r}: it is one of {', '.join(names)}, and {section}.name is "
            f"{config[section].name!r}; leave it out, or set --config.{section}.name={names[0]}, "
            f'in a file set_component(config, "{section}", "{names[0]}")'
        )
    return unknown_name("setting", path, all_rows(config) | option_rows(config.loss.terms))


def having(section: str, keys: Iterable[str]) -> dict[str, list[str]]:
    """By key, the package's components that bring such a setting to a section, if any do.

    Examples:
        >>> having("schedule", ["final", "finale"])
        {'final': ['cosine']}
    """
    found: dict[str, list[str]] = {}
    for name in SETTINGS[f"{section}.name"].known():
        for key in sorted(component_rows(section, name).keys() & set(keys)):
            found.setdefault(key, []).append(name)
    return found
