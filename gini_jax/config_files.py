"""Config files by name, and configs with some of their settings changed."""

import importlib.util
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gini_jax.checks import check_keys
from gini_jax.config import (
    OPTIONS,
    all_rows,
    option_rows,
    set_model,
    set_objective,
    set_option,
)
from gini_jax.errors import InputError, unknown_name
from gini_jax.losses.terms import objective_name


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"  # in a wheel
    folder = inside if inside.is_dir() else package.parent / "configs"
    return {path.stem: path for path in folder.glob("*.py") if path.stem != "__init__"}


def config_path(name: str) -> str:
    """The file, and the objective after the colon, that `--config` names.

    Args:
        name: a path, or the name of a shipped config, either with `:OBJECTIVE`.

    Raises:
        InputError: there is no such file, and no such shipped config.

    Examples:
        >>> Path(config_path("digits:ce")).name
        'digits.py:ce'
    """
    file, colon, objective = name.partition(":")
    if Path(file).expanduser().is_file():
        return str(Path(file).expanduser().resolve()) + colon + objective
    shipped = shipped_configs()
    stem = Path(file).stem
    if stem in shipped and file in (stem, f"{stem}.py", f"configs/{stem}.py"):
        return str(shipped[stem]) + colon + objective
    if file.endswith(".py") and "/" in file and not file.startswith("configs/"):
        raise InputError(
            f"--config={name}: no such file; give an existing file, or a shipped config such as "
            "--config=digits"
        )
    raise unknown_name("config", file, shipped)


def config_of(name: str) -> ConfigDict:
    """The settings in a config file.

    Args:
        name: as in `config_path`.

    Raises:
        InputError: there is no such config, or no such objective.
    """
    file, colon, objective = config_path(name).partition(":")
    spec = importlib.util.spec_from_file_location("gini_jax_config", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(objective) if colon else module.get_config()


def set_value(config: ConfigDict, path: str, value: Any) -> None:
    """Changes one setting; a single value makes up a tuple where the setting is one.

    Raises:
        InputError: the setting is unknown, or of another type.

    Examples:
        >>> from gini_jax.config import default_config
        >>> config = default_config()
        >>> set_value(config, "dataset.mean", "imagenet")
        >>> config.dataset.mean
        ('imagenet',)
    """
    rows = all_rows(config)
    if path not in rows:
        raise unknown_name("setting", path, rows | option_rows())
    default = rows[path].default
    if isinstance(default, tuple):
        value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    try:
        config.update_from_flattened_dict({path: value})
    except TypeError as error:
        kind = type(default).__name__
        raise InputError(f"{path}={value!r} is not of type {kind}, such as {default!r}") from error


def resolved(config: ConfigDict, given: dict[str, Any], terms: dict[str, float]) -> ConfigDict:
    """A config with everything that is given, and what follows from it.

    Args:
        config: already holds the given settings, but not yet what follows from them.
        given: settings, by path.
        terms: weights of terms.

    Raises:
        InputError: an unknown key, objective, network or term.
    """
    if "model.name" in given:
        own = {k.removeprefix("model."): v for k, v in given.items() if k.startswith("model.")}
        set_model(config, own.pop("name"), **{k: v for k, v in own.items() if k != "init"})
    if "objective" in given:
        set_objective(config, given["objective"])
    for path, value in given.items():
        if path.startswith(OPTIONS):
            set_option(config, path, value)
    with config.unlocked():
        for name, weight in terms.items():
            config.loss.terms[name] = weight
    check_keys(config)
    config.objective = objective_name(config.loss.terms)
    return config
