"""Configs in files: those that ship with the package, a user's, and those of finished runs."""

import importlib.util
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gini_jax.config.change import default_config, set_component, set_terms
from gini_jax.config.registry import SETTINGS, at, flattened, with_tuples
from gini_jax.errors import InputError, first_line, unknown_name


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    folder = (Path(__file__).parents[1] / "configs").resolve()  # in a clone, a link
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


def read_config(name: str) -> ConfigDict:
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
    try:
        spec.loader.exec_module(module)
        config = module.get_config(objective) if colon else module.get_config()
    except InputError:
        raise
    except Exception as error:  # the file is a program of the user's
        raise InputError(
            f"--config={name}: the file ends in an error ({type(error).__name__}: "
            f"{first_line(error)}); mend it, or give another file"
        ) from error
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"--config={name}: get_config gives a {type(config).__name__}, but must return a "
            "ConfigDict, such as default_config() with some changes"
        )
    return config


def command_of(saved: Mapping[str, Any], objective: str, workdir: str) -> str:
    """The command that trains a run with other terms, but otherwise with a given run's settings.

    Args:
        saved: the run's config.json.
        objective: of the other run.
        workdir: of the other run.

    Returns:
        A command; of a config that is not shipped, FILE stands for it.
    """
    name = saved["name"] if saved["name"] in shipped_configs() else ""
    if not name:
        return f"python launch.py --config=FILE:{objective} --workdir={workdir}"
    usual = flattened(with_tuples(read_config(f"{name}:{objective}").to_dict()))
    own = flattened(with_tuples(dict(saved)))
    left = ("objective", "loss.terms", "model.head")
    changes = [
        f"--config.{path}={value}"
        for path, value in own.items()
        if not path.startswith(left) and usual.get(path) != value
    ]
    arguments = [f"--config={name}:{objective}", f"--workdir={workdir}", *changes]
    return shlex.join(["python", "launch.py", *arguments])


def from_saved(saved: Mapping[str, Any]) -> ConfigDict:
    """The config that was written as JSON; settings that it lacks have their defaults."""
    config: ConfigDict = default_config()
    saved = dict(with_tuples(as_saved_now(saved)))
    for section, registry in SETTINGS.sections.items():
        own = saved.get(section, {})
        set_component(config, section, own.get("name", config[section].name))
        # Up to version 0.2 a section also held the settings of components that it did not name.
        there = config[section]
        kept = {k: value for k, value in own.items() if k in there or not registry.having(k)}
        saved = saved | {section: kept}
    set_terms(config, at(saved, "loss.terms"))
    with config.unlocked():
        config.update({k: v for k, v in saved.items() if k not in ("loss", "objective")})
        config.loss.update({k: v for k, v in saved["loss"].items() if k != "terms"})
    config.objective = saved["objective"]
    return config


def as_saved_now(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a saved config of version 0.2, which kept the terms' settings elsewhere."""
    loss: dict[str, Any] = dict(saved["loss"])
    options, target = loss.pop("options", {}), loss.pop("kl_target", None)
    if "hold_shares" in loss:
        loss["hold_gradient_ratios"] = loss.pop("hold_shares")
    terms: dict[str, Any] = {}
    for key, value in loss["terms"].items():
        is_new = isinstance(value, Mapping) and "weight" in value
        terms[key] = value if is_new else {"weight": value, **options.get(key, {})}
    if target and "kl" in terms:
        terms["kl"] = {"target": target} | terms["kl"]
    loss["terms"] = terms
    return {**saved, "loss": loss}
