"""The settings of a run: one row each, from which defaults, checks and the help text come."""

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from gini_jax.components import OPTIONS, SECTIONS, component_rows, option_rows
from gini_jax.errors import unknown_name
from gini_jax.settings import (
    BELOW_1,
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    Setting,
    flattened,
)

SETTINGS: dict[str, Setting] = {
    "name": Setting("", "name of the experiment, by convention that of its config file"),
    "objective": Setting("gini_kl", "name of the terms in loss.terms; set by FILE:OBJECTIVE"),
    "seed": Setting(0, "seed of initialisation, order, augmentation and dropout", bounds=SEED),
    "num_epochs": Setting(1, "epochs of training", bounds=COUNT),
    "batch_size": Setting(
        128,
        "images per step, over all devices of all processes; 0: 8 to 64, by the number of images, "
        "and schedule.learning_rate, given for 64, in proportion",
        bounds=NOT_NEGATIVE,
    ),
    "grad_accumulation": Setting(1, "micro-batches per batch; the terms stay exact", bounds=COUNT),
    "steps_per_call": Setting(
        1, "steps per compiled call, for small networks on accelerators", bounds=COUNT
    ),
    "eval_batch_size": Setting(
        1000, "images per evaluation step, over all devices; the last is padded", bounds=COUNT
    ),
    "eval_every_epochs": Setting(1, "epochs between two validations", bounds=COUNT),
    "early_stopping_epochs": Setting(
        0, "stop after this many epochs without a better validation; 0: never", bounds=NOT_NEGATIVE
    ),
    "checkpoint_every_epochs": Setting(
        1, "epochs between two checkpoints; a best validation is always saved", bounds=COUNT
    ),
    "checkpoint_every_minutes": Setting(
        0.0, "also checkpoint this many minutes after the last one; 0 disables", bounds=NOT_NEGATIVE
    ),
    "evals": Setting(
        ("all",),
        "evaluations of the tested checkpoint; accuracy and features always run",
        choices="gini_jax.evals:EVALS",
        own="gini_jax.evals:evaluation_of",
    ),
    "loggers": Setting(
        ("jsonl", "tensorboard"),
        "where metrics go; jsonl, which pictures are drawn from, is always written",
        choices="gini_jax.training.loggers:LOGGERS",
        own="gini_jax.training.loggers:logger_of",
    ),
    "log_every_steps": Setting(
        0, "also log every so many steps, besides every epoch; 0: epochs alone", bounds=NOT_NEGATIVE
    ),
    "report": Setting(True, "write report.html at the end of a run"),
    "debug_nans": Setting(False, "if the loss becomes NaN, name the first module with a NaN"),
    "profile": Setting(False, "trace ten steps of the first epoch into the workdir"),
    "dataset.name": Setting("digits", "digits, folder, hf:NAME_OR_PATH, or a set of TFDS"),
    "dataset.data_dir": Setting(
        "", "folder of the data; if empty, TFDS_DATA_DIR or TFDS's default"
    ),
    "dataset.test_split": Setting("test", "split to test on, e.g. validation for ImageNet"),
    "dataset.test_size": Setting(
        0, "folder, hf: images to test on where there is no test split", bounds=NOT_NEGATIVE
    ),
    "dataset.skip_damaged": Setting(False, "folder: name and skip images that cannot be read"),
    "dataset.image_column": Setting("", "hf: column of the images; found if empty"),
    "dataset.label_column": Setting("", "hf: column of the classes; found if empty"),
    "dataset.val_size": Setting(0, "training images held out for validation", bounds=NOT_NEGATIVE),
    "dataset.val_seed": Setting(
        0,
        "seed of the draws of val_size, train_size, labelled and label_noise; the same for all "
        "seeds of the run",
        bounds=SEED,
    ),
    "dataset.train_size": Setting(
        0, "train on a class-balanced subset of this size; 0 takes all", bounds=NOT_NEGATIVE
    ),
    "dataset.labelled": Setting(
        0,
        "training images of each class that keep their label; the network labels the others; 0: "
        "all",
        bounds=NOT_NEGATIVE,
    ),
    "dataset.held_out_classes": Setting(
        0, "the last classes, kept out of all splits; benches use them", bounds=NOT_NEGATIVE
    ),
    "dataset.superclasses": Setting(
        False, "superclasses are the classes; held_out_classes are the last ones of each"
    ),
    "dataset.label_noise": Setting(
        0.0, "share of the training images, of all that there are, with a wrong label", bounds=SHARE
    ),
    "dataset.label_noise_kind": Setting(
        "symmetric",
        "symmetric: any other class; pairwise: the next one",
        choices="gini_jax.data.protocols:NOISES",
    ),
    "dataset.sampler": Setting(
        "shuffled",
        "class_balanced: batches of batch_size / examples_per_class random classes",
        choices="gini_jax.data.sampling:SAMPLERS",
    ),
    "dataset.examples_per_class": Setting(
        4, "class_balanced: examples of each class in a batch", bounds=COUNT
    ),
    "dataset.image_size": Setting(
        0,
        "side of the images that the network sees; 0 keeps the size that the data set declares",
        bounds=NOT_NEGATIVE,
    ),
    "dataset.num_classes": Setting(
        0, "number of classes that the data must have; 0 accepts any", bounds=NOT_NEGATIVE
    ),
    "dataset.mean": Setting(
        (), "subtracted from pixels in [0, 1]: three numbers, or imagenet; (): 0, as in the paper"
    ),
    "dataset.std": Setting(
        (), "what pixels are then divided by: three numbers, or imagenet; (): 1"
    ),
    "dataset.feed": Setting(
        "auto",
        "device: held on each device; stream: from the host; auto: device if it fits",
        choices="gini_jax.data.loader:FEEDS",
    ),
    "augment.crop_padding": Setting(
        0, "pixels of zero padding before the random crop", bounds=NOT_NEGATIVE
    ),
    "augment.resized_crop": Setting(
        0.0, "resized crops of at least this share of the area; 0 disables", bounds=SHARE
    ),
    "augment.flip": Setting(False, "mirror horizontally, with probability 1/2"),
    "augment.mixup": Setting(
        0.0, "mix images and labels, with a coefficient from Beta(this, this)", bounds=NOT_NEGATIVE
    ),
    "augment.cutmix": Setting(
        0.0,
        "paste a box of another image, its area from Beta(this, this); with mixup: one of the two",
        bounds=NOT_NEGATIVE,
    ),
    "model.name": Setting(
        "resnet18",
        "the network",
        choices="gini_jax.models.registry:MODELS",
        own=SECTIONS["model"],
    ),
    "model.init": Setting(
        "",
        "weights to start from: a .safetensors or .pth file of PyTorch, a run's folder, or "
        "pip:NAME, the file in an installed package",
    ),
    "loss.layers": Setting(("stage4",), "layers whose features the terms act on"),
    "loss.ce_weight": Setting(1.0, "weight of cross-entropy", bounds=NOT_NEGATIVE),
    "loss.start_epoch": Setting(1, "first epoch with the terms, counted from 1", bounds=COUNT),
    "loss.ramp_epochs": Setting(
        0.0, "epochs over which the weights rise from 0, from start_epoch on", bounds=NOT_NEGATIVE
    ),
    "loss.hold_gradient_ratios": Setting(
        False,
        "terms' weights are gradient ratios: a gradient is held at weight times cross-entropy's",
    ),
    "loss.kl_target": Setting(
        "batch",
        "what kl compares with: class shares of the batch (the paper's), uniform over the classes "
        "present in it, or the prior: class shares of the training set",
        choices=("batch", "present", "prior"),
    ),
    "loss.class_weights": Setting(
        (), "weights in cross-entropy: balanced (inverse to class frequency), or one per class"
    ),
    "loss.label_smoothing": Setting(
        0.0, "share of the label that is spread evenly over the classes", bounds=BELOW_1
    ),
    "loss.pseudo_confidence": Setting(
        0.95,
        "with dataset.labelled: the network's own label counts where it is at least this sure",
        bounds=SHARE,
    ),
    "loss.running_decay": Setting(
        0.0, "decay of the class sums' moving average; 0 uses only the batch", bounds=BELOW_1
    ),
    "optimizer.name": Setting(
        "sgd",
        "the optimiser",
        choices="gini_jax.training.optim:OPTIMIZERS",
        own=SECTIONS["optimizer"],
    ),
    "optimizer.weight_decay": Setting(
        5e-4, "weight decay, on every parameter", bounds=NOT_NEGATIVE
    ),
    "optimizer.clip_norm": Setting(
        0.0, "largest global norm of the gradient; 0 disables clipping", bounds=NOT_NEGATIVE
    ),
    "optimizer.ema_decay": Setting(
        0.0, "decay of a moving average of the weights to evaluate; 0 disables", bounds=BELOW_1
    ),
    "optimizer.groups": Setting(
        (),
        "factors of the learning rate, and weight decay or not, by patterns over the parameters' "
        "names; the first that matches counts: (('head/.*', 10.0), ('.*/bias', 1.0, 0.0))",
    ),
    "schedule.name": Setting(
        "cosine",
        "learning-rate schedule",
        choices="gini_jax.training.schedules:SCHEDULES",
        own=SECTIONS["schedule"],
    ),
    "schedule.learning_rate": Setting(0.1, "highest learning rate", bounds=POSITIVE),
    "schedule.warmup_epochs": Setting(0.0, "epochs of linear warm-up from 0", bounds=NOT_NEGATIVE),
}


WEIGHTS = "loss.terms."
WEIGHT = Setting(0.0, "weight of the term", bounds=NOT_NEGATIVE)


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
    known = option_rows(config.loss.terms)
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
