"""The rules that the values of a config must obey, checked before anything is built."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gini_jax.config.change import check_keys
from gini_jax.config.registry import SETTINGS, Setting, flattened, in_bounds
from gini_jax.errors import InputError, unknown_name
from gini_jax.losses.term import TermContext
from gini_jax.losses.terms import PRESETS, needs_of, objective_name, spec_of, weight_of
from gini_jax.training.frozen import check_frozen
from gini_jax.training.schedules import SCHEDULES
from gini_jax.training.trial import check_rates


def check_config(config: ConfigDict, num_devices: int) -> None:
    """Refuses values that break a rule.

    Args:
        config: the settings.
        num_devices: devices that the global batch is divided over.

    Raises:
        InputError: names the first value that breaks a rule, the rule and a fix.

    Examples:
        >>> from gini_jax.config import default_config
        >>> check_config(default_config("ce"), num_devices=8)
        >>> config = default_config()
        >>> config.optimizer.momentum = 1.5
        >>> check_config(config, num_devices=8)
        Traceback (most recent call last):
        gini_jax.errors.InputError: optimizer.momentum=1.5 must lie in [0, 1); ...
    """
    check_keys(config)
    check_name(config.name)
    values, rows = flattened(config), SETTINGS.of(config)
    for path, row in rows.items():
        _check_value(path, values[path], row)
    _check_objective(config)
    _check_needs(config)
    check_batch(config, num_devices)
    _check_together(config)


def check_name(name: Any) -> None:
    """Refuses a name that would put the default workdir, `runs/NAME`, in another folder.

    Raises:
        InputError: it is not a valid folder name.

    Examples:
        >>> check_name("../../x")
        Traceback (most recent call last):
        gini_jax.errors.InputError: name='../../x' must be the name of a folder, ...
    """
    if name in (".", "..") or any(part in str(name) for part in ("/", "\\", "\0")):
        raise InputError(
            f"name={name!r} must be the name of a folder, without / or \\, because the default "
            "workdir is runs/NAME; set --config.name=NAME, and the folder with --workdir"
        )


def check_layers(layers: tuple[str, ...], known: Any) -> None:
    """Refuses `loss.layers` that the model has no features for.

    Raises:
        InputError: names the layer and the known ones.

    Examples:
        >>> check_layers(("stage4",), ["stage3", "stage4"])
    """
    for layer in layers:
        if layer not in known:
            raise unknown_name("layer in loss.layers", layer, known)


def inactive(config: ConfigDict) -> set[str]:
    """The settings that a run with this config ignores: changing them gives the same run.

    Examples:
        >>> from gini_jax.config import default_config
        >>> "loss.start_epoch" in inactive(default_config("ce"))
        True
        >>> "loss.start_epoch" in inactive(default_config("kl"))
        False
    """
    rows = SETTINGS.of(config).items()
    return {path for path, row in rows if row.read_if and not row.read_if(config)}


def notes_on(config: ConfigDict) -> list[str]:
    """Notes on settings without effect; printed at the start and kept in result.json.

    Examples:
        >>> from gini_jax.config import default_config, set_component
        >>> config = default_config("ce")
        >>> set_component(config, "schedule", "step", boundaries=(60,))
        >>> notes_on(config)
        ['schedule.boundaries: (60,) have no effect in a run of 1 epochs']
    """
    notes: list[str] = []
    schedule = SCHEDULES.create(config.schedule)
    if hasattr(schedule, "notes"):
        notes += schedule.notes(config.num_epochs)
    if config.model.init and not config.dataset.mean and not Path(config.model.init).is_dir():
        notes.append(
            "model.init is set without dataset.mean and std: images stay in [0, 1]; weights "
            "pretrained on ImageNet expect --config.dataset.mean=imagenet "
            "--config.dataset.std=imagenet"
        )
    values, rows = flattened(config), SETTINGS.of(config)
    recipes = {"loss.start_epoch", "loss.ramp_epochs"}  # set them for every objective
    for path in sorted(inactive(config) - recipes):
        name = values.get(f"{path.rpartition('.')[0]}.name")
        if values[path] != rows[path].default:
            notes.append(
                f"{path}={values[path]!r} has no effect" + (f" with {name}" if name else "")
            )
    if config.eval_every_epochs > config.num_epochs:
        notes.append(
            f"eval_every_epochs={config.eval_every_epochs}: only the last epoch is validated"
        )
    return notes


def _check_value(path: str, value: Any, row: Setting) -> None:
    """Checks a value against its setting: type, choices and bounds."""
    wanted = type(row.default)
    value = tuple(value) if wanted is tuple and isinstance(value, list) else value
    is_number = wanted in (int, float) and not isinstance(value, bool)
    if not (isinstance(value, wanted) or (is_number and isinstance(value, (int, float)))):
        raise InputError(
            f"{path}={value!r} has type {type(value).__name__}; it needs type {wanted.__name__}, "
            f"such as --config.{path}={row.default!r}"
        )
    parts: Any = value if wanted is tuple and row.default else ()
    for one in parts:
        inside = type(row.default[0])
        one = tuple(one) if isinstance(one, list) else one  # as config.json has it
        if not isinstance(one, inside) or isinstance(one, bool):
            raise InputError(
                f"{path}={value!r}: {one!r} must have type {inside.__name__}, as in "
                f"--config.{path}={row.default!r}"
            )
    for one in value if isinstance(value, (tuple, list)) else (value,):
        if one != row.default and (one,) != row.default and not row.accepts(one):
            raise unknown_name(path, one, row.choices)
    if wanted is int and not float(value).is_integer():
        raise InputError(
            f"{path}={value!r} must be a whole number, such as --config.{path}={row.default!r}"
        )
    if row.bounds and not in_bounds(value, row.bounds):
        raise InputError(
            f"{path}={value!r} must lie in {row.bounds}; the default is "
            f"--config.{path}={row.default!r}",
            fix=(path, row.default),
        )


def _check_objective(config: ConfigDict) -> None:
    name = objective_name(config.loss.terms)
    if config.objective != name:
        if config.objective not in PRESETS and name in PRESETS:
            raise unknown_name("objective", config.objective, PRESETS)
        raise InputError(
            f"objective={config.objective!r}, but loss.terms={_weights(config)} are "
            f"those of {name!r}; call set_objective, or set config.objective to that name"
        )
    for term, section in config.loss.terms.items():
        if hasattr(section.weight, "items"):
            _check_layer_weights(config, term, dict(section.weight))
    active = name != "ce"
    if active and config.loss.hold_gradient_ratios and not config.loss.ce_weight:
        raise InputError(
            "loss.hold_gradient_ratios=True holds ratios to cross-entropy's gradient, but "
            "loss.ce_weight=0; set --config.loss.hold_gradient_ratios=False or a "
            "--config.loss.ce_weight",
            fix=("loss.hold_gradient_ratios", False),
        )
    if active and config.loss.start_epoch > config.num_epochs:
        raise InputError(
            f"loss.start_epoch={config.loss.start_epoch} lies after the last epoch, "
            f"num_epochs={config.num_epochs}, so {name} would train with cross-entropy only; set "
            f"--config.loss.start_epoch=1, or give the objective ce: --config=FILE:ce",
            fix=("loss.start_epoch", 1),
        )


def _weights(config: ConfigDict) -> dict[str, Any]:
    return {key: weight_of(section) for key, section in config.loss.terms.items()}


def _check_layer_weights(config: ConfigDict, term: str, weights: dict[str, float]) -> None:
    """Refuses per-layer weights that the term or the rest of the config does not support."""
    context = TermContext(superclasses=(0, 0))
    if not hasattr(spec_of(term, config.loss.terms[term]).create(context), "layers"):
        raise InputError(
            f"loss.terms.{term}={weights}: this term does not act on the features of layers; give "
            f"one weight: --config.loss.terms.{term}=0.5"
        )
    check_layers(tuple(weights), config.loss.layers)
    if not any(weights.values()):
        raise InputError(
            f"loss.terms.{term}={weights}: no layer has a weight; leave the term out: "
            f"--config.loss.terms.{term}=0"
        )
    if config.loss.hold_gradient_ratios:
        raise InputError(
            f"loss.terms.{term}={weights}: loss.hold_gradient_ratios=True holds one ratio for a "
            f"term; give one weight, such as --config.loss.terms.{term}=0.1"
        )


def _check_needs(config: ConfigDict) -> None:
    """Checks that the rest of the config provides what the terms need."""
    sections = config.loss.terms.to_dict()
    terms = {key: section for key, section in sections.items() if weight_of(section)}
    for key, section in sections.items():
        rows = spec_of(key, section).settings
        given = [k for k, x in section.items() if k in rows and x != rows[k].default]
        if key not in terms and (set(given) - {"weight"} or "name" in section):
            raise InputError(
                f"loss.terms.{key}.{next(iter({*given, 'name'} - {'weight'}))} has no effect: the "
                f"term has no weight; leave it out, or set --config.loss.terms.{key}=0.5"
            )
    heads = needs_of(terms) & {"cosine", "probe"}
    who = ", ".join(name for name in terms if heads & needs_of({name: terms[name]}))
    if len(heads) > 1:
        raise InputError(
            f"loss.terms {who} need different heads of the network ({', '.join(sorted(heads))}); "
            f"set one of them to 0, such as --config.loss.terms.{who.split(', ')[0]}=0"
        )
    if heads and "head" not in config.model:
        raise InputError(
            f"loss.terms.{who} needs a {heads.pop()} head, but {config.model.name} has no setting "
            "head; add one to its module, or set another network: --config.model.name=resnet18"
        )
    if heads and config.model.head not in ("auto", *heads):
        raise InputError(
            f"loss.terms.{who} needs a {heads.pop()} head, but model.head={config.model.head}; set "
            "--config.model.head=auto",
            fix=("model.head", "auto"),
        )


def check_batch(config: ConfigDict, num_devices: int) -> None:
    """Refuses a batch that the devices and micro-batches do not divide evenly.

    Raises:
        InputError: names the next smaller batch size that they divide evenly.

    Examples:
        >>> from gini_jax.config import default_config
        >>> check_batch(default_config(), num_devices=8)
    """
    parts = config.grad_accumulation
    if config.batch_size % (num_devices * parts):
        below = max(config.batch_size // (num_devices * parts), 1) * num_devices * parts
        in_parts = f" times grad_accumulation={parts}" if parts > 1 else ""
        raise InputError(
            f"batch_size={config.batch_size} is not divisible by {num_devices} devices{in_parts}; "
            f"set a multiple, such as --config.batch_size={below}",
            fix=("batch_size", below),
        )


def _check_labelled(config: ConfigDict) -> None:
    """Refuses settings that need every label if some labels are left out."""
    rules = {
        "augment.mixup": (config.augment.mixup, 0.0),
        "augment.cutmix": (config.augment.cutmix, 0.0),
        "grad_accumulation": (config.grad_accumulation, 1),
        "dataset.sampler": (config.dataset.sampler, "shuffled"),
    }
    for path, (value, needed) in rules.items():
        if config.dataset.labelled and value != needed:
            raise InputError(
                f"dataset.labelled={config.dataset.labelled} leaves images unlabelled, but "
                f"{path}={value} needs every label before the forward pass; set "
                f"--config.{path}={needed}, or --config.dataset.labelled=0",
                fix=(path, needed),
            )


def _check_together(config: ConfigDict) -> None:
    """Checks the rules that involve several settings."""
    _check_labelled(config)
    check_frozen(config)
    if config.augment.resized_crop and config.augment.crop_padding:
        raise InputError(
            f"augment.resized_crop={config.augment.resized_crop} replaces padded crops; "
            "set --config.augment.crop_padding=0",
            fix=("augment.crop_padding", 0),
        )
    if config.early_stopping_epochs % config.eval_every_epochs:
        raise InputError(
            f"early_stopping_epochs={config.early_stopping_epochs} must be a multiple of "
            f"eval_every_epochs={config.eval_every_epochs}, such as "
            f"--config.early_stopping_epochs={5 * config.eval_every_epochs}",
            fix=("early_stopping_epochs", 5 * config.eval_every_epochs),
        )
    weights = tuple(config.loss.class_weights)
    if weights not in ((), ("balanced",)) and not all(
        isinstance(w, (int, float)) and w > 0 for w in weights
    ):
        raise InputError(
            f"loss.class_weights={weights} must be one number above 0 per class, or balanced: "
            "--config.loss.class_weights=balanced",
            fix=("loss.class_weights", "balanced"),
        )
    if not config.loss.layers:
        raise InputError("loss.layers is empty; name at least one layer, such as ('stage4',)")
    for key in ("mean", "std"):
        values = tuple(config.dataset[key])
        numbers = all(isinstance(v, (int, float)) and (v > 0 or key == "mean") for v in values)
        if values not in ((), ("imagenet",)) and not (len(values) == 3 and numbers):
            raise InputError(
                f"dataset.{key}={values} must be three numbers{', above 0' * (key == 'std')}, such "
                f"as (0.5, 0.5, 0.5), or imagenet: --config.dataset.{key}=imagenet"
            )
    check_rates(config)
