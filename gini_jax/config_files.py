"""Config files by name, and configs with some of their settings changed."""

import ast
import importlib.util
import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gini_jax.components import OPTIONS, SECTIONS, option_rows
from gini_jax.config import (
    all_rows,
    set_component,
    set_objective,
    set_option,
    term_weights,
)
from gini_jax.data.augment import augmentation_of
from gini_jax.errors import InputError, first_line, unknown_name
from gini_jax.keys import RENAMED, check_keys, unknown_setting
from gini_jax.losses.terms import entry_of, objective_name
from gini_jax.settings import flattened, with_tuples
from gini_jax.table import WEIGHTS


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    folder = (Path(__file__).parent / "configs").resolve()  # in a clone, a link
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
    """The command that trains a run of other terms with a run's settings.

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
    usual = flattened(with_tuples(config_of(f"{name}:{objective}").to_dict()))
    own = flattened(with_tuples(dict(saved)))
    left = ("objective", "loss.terms", "loss.options", "model.head")
    changes = [
        f"--config.{path}={value}"
        for path, value in own.items()
        if not path.startswith(left) and usual.get(path) != value
    ]
    arguments = [f"--config={name}:{objective}", f"--workdir={workdir}", *changes]
    return shlex.join(["python", "launch.py", *arguments])


def fitting(path: str, value: Any, default: Any) -> Any:
    """A value as its setting takes it.

    Raises:
        InputError: it is of another type.

    Examples:
        >>> fitting("dataset.mean", "imagenet", ()), fitting("seed", 3, 0), fitting("x", 1, 0.5)
        (('imagenet',), 3, 1.0)
    """
    kind = type(default)
    if kind is tuple:
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1000 else math.inf  # which no setting takes
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(
            f"{path}={value!r} has type {type(value).__name__}; it needs type {kind.__name__}, "
            f"such as --config.{path}={default!r}"
        )
    return value


def written(path: str, text: str, default: Any) -> Any:
    """The value that a text on the command line stands for.

    Raises:
        InputError: it is of another type than the setting.

    Examples:
        >>> written("loggers", "jsonl,wandb", ()), written("report", "false", True)
        (('jsonl', 'wandb'), False)
        >>> written("loss.layers", "('stage4',)", ()), written("name", "12", "")
        (('stage4',), '12')
    """
    if isinstance(default, str):
        return text
    if isinstance(default, tuple) and not text.strip():
        return ()
    if isinstance(default, bool):
        return fitting(path, _BOOLS.get(text.lower(), text), default)
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        value = tuple(text.split(",")) if isinstance(default, tuple) else text
    if isinstance(default, int) and isinstance(value, float) and value.is_integer():
        value = int(value)
    return fitting(path, value, default)


_BOOLS = {"true": True, "false": False, "1": True, "0": False}


def changed(
    config: ConfigDict, given: Mapping[str, Any], read: Callable[[str, Any, Any], Any] = fitting
) -> ConfigDict:
    """Changes settings of a config, and what follows from them; returns it.

    Names of components and the objective come first, because they bring settings of their own.

    Args:
        config: the settings.
        given: new values, by path.
        read: from a path, a value and the setting's default to what is set.

    Raises:
        InputError: a setting or a name is unknown, or a value is of another type.

    Examples:
        >>> from gini_jax.config import default_config
        >>> given = {"schedule.boundaries": (60,), "schedule.name": "step", "loss.terms.kl": 0.1}
        >>> config = changed(default_config("gini"), given)
        >>> config.schedule.boundaries, config.objective
        ((60,), 'gini_kl')
    """
    first = [*(f"{section}.name" for section in SECTIONS), "objective"]
    last = [path for path in given if path.startswith(OPTIONS)]  # of terms that others may add
    paths = [*(p for p in first if p in given), *(p for p in given if p not in {*first, *last})]
    for path in [*paths, *last]:
        set_value(config, path, given[path], read)
    check_keys(config)
    config.objective = objective_name(config.loss.terms)
    return config


def set_value(
    config: ConfigDict,
    path: str,
    value: Any,
    read: Callable[[str, Any, Any], Any] = fitting,
) -> None:
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
    section, _, key = path.partition(".")
    if path in RENAMED:
        raise unknown_setting(path, config)
    if section in SECTIONS and key == "name":
        if value != config[section].name:
            set_component(config, section, value)
    elif path == "objective":
        set_objective(config, value)
    elif path.startswith(WEIGHTS):
        _set_weight(config, path, value if isinstance(value, Mapping) else read(path, value, 0.0))
    elif path.startswith(OPTIONS):
        rows = option_rows(config.loss.terms)
        if path not in rows:
            raise unknown_setting(path, config)
        set_option(config, path, read(path, value, rows[path].default))
    elif section == "augment" and ":" in key:
        _refuse_dots("augmentation", key)
        with config.unlocked():
            config.augment[key] = read(path, value, augmentation_of(key).setting.default)
    else:
        rows = all_rows(config)
        if path not in rows:
            raise unknown_setting(path, config)
        config.update_from_flattened_dict({path: read(path, value, rows[path].default)})


def _set_weight(config: ConfigDict, path: str, value: float | Mapping[str, float]) -> None:
    """Sets the weight of a term, or its weight for a layer: `loss.terms.TERM.LAYER`."""
    term, _, layer = path.removeprefix(WEIGHTS).partition(".")
    _refuse_dots("term", path.removeprefix(WEIGHTS) if ":" in layer else term)
    entry_of(term)
    for name in value if isinstance(value, Mapping) else filter(None, (layer,)):
        if "." in name:
            raise unknown_name("layer in loss.layers", name, config.loss.layers)
    terms: dict[str, Any] = config.loss.terms.to_dict()
    if layer:
        before = terms.get(term)
        value = {**(before if isinstance(before, dict) else {}), layer: value}  # type: ignore
    with config.unlocked():
        config.loss.terms = term_weights(terms | {term: value})


def _refuse_dots(kind: str, name: str) -> None:
    """Names of one's own terms and augmentations are keys of the config, which have no dot."""
    if "." in name:
        raise InputError(
            f"{kind} {name!r} has a dot; give a module without one, such as "
            f"parts:{name.rpartition(':')[2]}"
        )
