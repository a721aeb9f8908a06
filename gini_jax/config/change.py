"""The config of a run: every setting at its default, and changes of it."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from gini_jax.config.registry import SETTINGS, Setting, flattened
from gini_jax.config.values import fitting
from gini_jax.errors import InputError, unknown_name
from gini_jax.losses.terms import PRESETS, TERMS, objective_name

RENAMED = {
    "loss.gini_weight": "loss.terms.gini",
    "loss.kl_weight": "loss.terms.kl",
    "loss.kl_target": "loss.terms.kl.target",
    "loss.hold_shares": "loss.hold_gradient_ratios",
    "loss.terms.collision": "loss.terms.renyi, not divided by log K: divide the weight by log K",
}
_OLD_OPTIONS = "loss.options."


def default_config(objective: str | None = None) -> ConfigDict:
    """A config with every setting at its default, which config files and the command line change.

    Import it from `gini_jax.config`, which fills the table of settings first.

    Args:
        objective: what follows the colon in `--config=FILE:objective`; `gini_kl` by default.

    Returns:
        A ConfigDict, not yet checked; `check_config` does that once all changes are made.

    Raises:
        InputError: the objective is unknown.

    Examples:
        >>> default_config("gini").loss.terms.to_dict()
        {'gini': {'weight': 0.5}}
    """
    config = ConfigDict()
    for path, row in SETTINGS.rows.items():
        section, _, key = path.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        (config[section] if section else config)[key] = row.default
    for section in SETTINGS.sections:
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
    if objective not in PRESETS:
        raise unknown_name("objective", objective, PRESETS)
    config.objective = objective
    set_terms(config, PRESETS[objective])


def set_terms(config: ConfigDict, terms: Mapping[str, Any]) -> None:
    """Replaces all terms: by key a weight, or a section as in `config.loss.terms`."""
    with config.unlocked():
        config.loss.terms = ConfigDict(type_safe=False)
    for key, given in terms.items():
        set_term(config, key, **_section_of(key, given))


def set_term(config: ConfigDict, key: str, **settings: Any) -> None:
    """Adds a term to the objective, or changes it; a new term takes defaults for other settings.

    Args:
        config: the settings of a run.
        key: a term's name, or any other key together with `name`.
        **settings: `weight`, a number or a mapping from layers to numbers; `name`, the term or the
            plugin `package.module:Name`, if it is not the key; and the term's own settings.

    Raises:
        InputError: the term or a setting is unknown.

    Examples:
        >>> config = default_config("ce")
        >>> set_term(config, "kl", weight=0.5, target="present")
        >>> set_term(config, "far", name="supcon", weight=0.1)
        >>> config.objective, config.loss.terms.kl.target, config.loss.terms.far.temperature
        ('kl_far', 'present', 0.1)
    """
    before = dict(_section_of(key, config.loss.terms.get(key, {})).items())
    if settings.get("name", before.get("name")) != before.get("name"):
        before = {}  # another term, with settings of its own
    given = before | settings
    rows = TERMS.settings(given.get("name", key))
    for name in given:
        if name not in rows and name != "name":
            raise unknown_name(f"setting of loss.terms.{key}", name, rows)
    section = ConfigDict({k: row.default for k, row in rows.items()} | given, type_safe=False)
    with config.unlocked(), config.ignore_type():
        config.loss.terms[key] = section
    config.objective = objective_name(config.loss.terms)


def set_component(config: ConfigDict, section: str, name: str, **settings: Any) -> None:
    """Sets the network, the schedule or the optimiser.

    The new component's own settings replace those of the old one; the shared settings stay.

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
    rows = SETTINGS.sections[section].settings(name)
    of_all = {path.partition(".")[2] for path in SETTINGS.rows if path.startswith(f"{section}.")}
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


def changed(
    config: ConfigDict,
    given: Mapping[str, Any],
    read: Callable[[str, Any, Any], Any] | None = None,
) -> ConfigDict:
    """Changes settings of a config, and what follows from them; returns it.

    It sets names of components and the objective first, because these add settings of their own.

    Args:
        config: the settings.
        given: new values, by path.
        read: a function from a path, a value and the setting's default to the value to set;
            `fitting` by default.

    Raises:
        InputError: a setting or a name is unknown, or a value is of another type.

    Examples:
        >>> given = {"schedule.boundaries": (60,), "schedule.name": "step", "loss.terms.kl": 0.1}
        >>> config = changed(default_config("gini"), given)
        >>> config.schedule.boundaries, config.objective
        ((60,), 'gini_kl')
    """
    names = [f"{section}.name" for section in SETTINGS.sections]
    first = [path for path in (*names, "objective") if path in given]
    first += [path for path in given if path.endswith(".name") and path not in first]
    for path in [*first, *(path for path in given if path not in first)]:
        set_value(config, path, given[path], read or fitting)
    check_keys(config)
    config.objective = objective_name(config.loss.terms)
    return config


def set_value(
    config: ConfigDict, path: str, value: Any, read: Callable[[str, Any, Any], Any] | None = None
) -> None:
    """Changes one setting; where the setting is a tuple, a single value becomes a tuple of one.

    Raises:
        InputError: the setting is unknown, or of another type.

    Examples:
        >>> config = default_config()
        >>> set_value(config, "dataset.mean", "imagenet")
        >>> config.dataset.mean
        ('imagenet',)
    """
    read = read or fitting
    section, _, key = path.partition(".")
    if path in RENAMED or path.startswith(_OLD_OPTIONS):
        raise unknown_setting(path, config)
    if section in SETTINGS.sections and key == "name":
        if value != config[section].name:
            set_component(config, section, value)
    elif path == "objective":
        set_objective(config, value)
    elif path.startswith("loss.terms."):
        _set_in_term(config, path, value, read)
    elif section == "augment" and path not in SETTINGS.rows:
        _set_augmentation(config, path, value, read)
    else:
        rows = SETTINGS.of(config)
        if path not in rows:
            raise unknown_setting(path, config)
        config.update_from_flattened_dict({path: read(path, value, rows[path].default)})


def _set_in_term(config: ConfigDict, path: str, value: Any, read: Callable[..., Any]) -> None:
    """Sets `loss.terms.TERM`, short for its weight, `.TERM.SETTING`, or `.TERM.weight.LAYER`."""
    _refuse_dots(path, "loss.terms", "weight", value)
    key, *rest = path.removeprefix("loss.terms.").split(".")
    setting, *layer = rest or ["weight"]
    if isinstance(value, Mapping) and not rest:
        return set_term(config, key, **_section_of(key, value))
    there = config.loss.terms.get(key, {})
    if setting == "name":
        return set_term(config, key, name=value)
    rows = TERMS.settings(there.get("name", key) if hasattr(there, "get") else key)
    if setting in config.loss.layers and setting not in rows:
        raise InputError(
            f"{path}: a layer's weight is loss.terms.{key}.weight.{setting}; set "
            f"--config.loss.terms.{key}.weight.{setting}={value}"
        )
    if setting == "weight" and layer and ".".join(layer) not in config.loss.layers:
        raise unknown_name("layer in loss.layers", ".".join(layer), config.loss.layers)
    if setting not in rows or len(layer) > 1 or (layer and setting != "weight"):
        raise unknown_setting(path, config)
    if key not in config.loss.terms and setting != "weight":
        raise InputError(
            f"{path} has no effect: the objective has no term {key}; leave it out, or set a "
            f"weight: --config.loss.terms.{key}=0.5"
        )
    if not isinstance(value, Mapping):
        value = read(path, value, rows[setting].default)
    if layer:
        before = there.get("weight", {})
        value = {**(dict(before) if hasattr(before, "items") else {}), layer[0]: value}
    set_term(config, key, **{setting: value})


def _section_of(key: str, value: Any) -> Any:
    """The section of a term that a config file gives: a weight, weights of layers, or a section."""
    if not hasattr(value, "items"):
        return {"weight": value}
    if not value or "name" in value or set(value) & set(TERMS.settings(key)):
        return value
    return {"weight": dict(value.items())}


def _set_augmentation(config: ConfigDict, path: str, value: Any, read: Callable[..., Any]) -> None:
    """Sets the strength `augment.MODULE:NAME`, or `.name` or `.strength` of a plugin's key."""
    _refuse_dots(path, "augment", "strength", value)
    key, _, setting = path.removeprefix("augment.").partition(".")
    there = config.augment.get(key, {})
    section = dict(there) if hasattr(there, "items") else {}
    if setting not in ("", "name", "strength") or (":" not in key and not setting):
        raise unknown_setting(path, config)
    registry = SETTINGS.keyed["augment"]
    if setting == "name":
        registry.find(value)
        section = {"strength": 0.0} | section | {"name": value}
    else:
        if setting and "name" not in section:
            raise unknown_setting(path, config)
        default = registry.settings(section.get("name", key))["strength"].default
        value = read(path, value, default)
        section = section | {"strength": value} if setting else value
    with config.unlocked():
        config.augment[key] = ConfigDict(section) if setting else section


def _refuse_dots(path: str, section: str, setting: str, value: Any) -> None:
    """Refuses a plugin's name as a key if its module has dots, because dots separate keys."""
    module, colon, name = path.removeprefix(f"{section}.").partition(":")
    if colon and "." in module:
        key = name.partition(".")[0]
        raise InputError(
            f"{path}: the module of this plugin has a dot, so it needs a key of its own; set "
            f"--config.{section}.{key}.name={module}:{key} --config.{section}.{key}.{setting}="
            f"{value if isinstance(value, (int, float, str)) else 0.5}"
        )


def check_keys(config: ConfigDict) -> None:
    """Refuses keys that are not settings, such as a typo in a config file.

    A term that is a number is a weight; the other settings of its section are filled in.

    Raises:
        InputError: names the key and the nearest setting.

    Examples:
        >>> config = default_config()
        >>> with config.unlocked():
        ...     config.loss.start_epohc = 3
        >>> check_keys(config)
        Traceback (most recent call last):
        gini_jax.errors.InputError: unknown setting 'loss.start_epohc'; did you mean ...
    """
    for section in SETTINGS.sections:
        if section not in config or "name" not in config[section]:
            raise InputError(f"the config lacks '{section}.name'; start it from default_config()")
    objective = config.objective
    for key, value in config.loss.terms.items():
        if f"loss.terms.{key}" in RENAMED:
            raise unknown_setting(f"loss.terms.{key}", config)
        own = _section_of(key, value)
        if own is not value or set(TERMS.settings(own.get("name", key))) - set(own):
            set_term(config, key, **own)
    config.objective = objective
    rows, there = SETTINGS.of(config), flattened(config)
    for path in there:
        if path not in rows:
            raise unknown_setting(path, config)
    for path in rows:
        if path not in there:
            raise InputError(f"the config lacks {path!r}; start it from default_config()")


def unknown_setting(path: str, config: ConfigDict) -> InputError:
    """An error for a path that is no setting of a config.

    Examples:
        >>> print(unknown_setting("schedule.factor", default_config()))
        unknown setting 'schedule.factor': it is one of step, and schedule.name is 'cosine'; ...
    """
    if path.startswith(_OLD_OPTIONS):
        now = f"loss.terms.{path.removeprefix(_OLD_OPTIONS)}"
        return InputError(f"unknown setting {path!r}; it is now {now}")
    if path in RENAMED:
        return InputError(f"unknown setting {path!r}; it is now {RENAMED[path]}")
    section, _, key = path.partition(".")
    if section in SETTINGS.sections and (names := SETTINGS.sections[section].having(key)):
        return InputError(
            f"unknown setting {path!r}: it is one of {', '.join(names)}, and {section}.name is "
            f"{config[section].name!r}; leave it out, or set --config.{section}.name={names[0]}, "
            f'in a file set_component(config, "{section}", "{names[0]}")'
        )
    return unknown_name("setting", path, known_settings(config))


def known_settings(config: ConfigDict) -> dict[str, Setting]:
    """The settings of a config by path, and those that every term of the package would bring."""
    rows = {f"loss.terms.{term}": TERMS.settings(term)["weight"] for term in TERMS}
    for term in TERMS:
        rows |= {f"loss.terms.{term}.{key}": row for key, row in TERMS.settings(term).items()}
    return SETTINGS.of(config) | rows
