"""Checks a config, and builds the fixed parts of a run from it."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float32, Int
from ml_collections import ConfigDict

from gini_jax.data.sampling import check_sampler, steps_of_epoch
from gini_jax.data.source import Dataset
from gini_jax.devices import AXIS, num_devices
from gini_jax.errors import InputError
from gini_jax.evals import check_evaluations
from gini_jax.losses.objective import Objective
from gini_jax.losses.term import TermContext
from gini_jax.losses.terms import needs_of, weight_of
from gini_jax.models import create_model
from gini_jax.models.frozen import Frozen, pooled_width
from gini_jax.models.registry import body_settings, model_settings
from gini_jax.training.checks import check_batch, check_config, check_layers
from gini_jax.training.groups import check_groups
from gini_jax.training.optim import create_optimizer
from gini_jax.training.schedules import SCHEDULES, create_schedule
from gini_jax.training.state import Experiment, feature_shapes, why_not_measured
from gini_jax.training.trial import NETWORK, check_functions, check_network, check_terms, tried


def build_experiment(
    config: ConfigDict, dataset: Dataset, devices: Sequence[jax.Device] | None = None
) -> Experiment:
    """Builds a run's model, optimiser, schedule and objective from its config and data set.

    Args:
        config: the settings, which `check_before_data` has checked.
        dataset: the data, or their shapes.
        devices: to train on; all by default.

    Raises:
        InputError: a value does not fit the data.
    """
    train_size = dataset.splits["train"].labels.shape[0]
    automatic = config.batch_size == 0
    config = with_batch(config, train_size, dataset.num_classes)
    check_batch(config, num_devices(devices))
    steps_per_epoch = steps_of_epoch(train_size, config.batch_size)
    if steps_per_epoch == 0:
        fitting = 2 ** max(train_size.bit_length() - 3, 0)  # four steps per epoch or more
        raise InputError(
            f"batch_size={config.batch_size} exceeds the {train_size} training images; set a "
            f"smaller one, such as --config.batch_size={fitting}",
            fix=("batch_size", fitting),
        )
    if config.early_stopping_epochs and not dataset.splits["val"].labels.shape[0]:
        raise InputError(
            f"early_stopping_epochs={config.early_stopping_epochs} needs a validation split; set "
            f"--config.dataset.val_size, such as {max(train_size // 10, 1)}, or "
            "--config.early_stopping_epochs=0",
            fix=("early_stopping_epochs", 0),
        )
    check_sampler(config, int(np.count_nonzero(class_counts(dataset))))
    schedule = create_schedule(config.schedule, steps_per_epoch, config.num_epochs)
    model, stored = create_model_of(config, dataset.num_classes), dataset.splits["train"].images
    shape = stored.shape[1:]
    if isinstance(model, Frozen):
        shape = (1 + config.model.views, pooled_width(model.body, dataset.image_size))
    return Experiment(
        config=config,
        model=model,
        optimizer=create_optimizer(config.optimizer, schedule),
        schedule=jax.jit(schedule),
        objective=Objective(
            config.loss.terms.to_dict(),
            config.loss.running_decay,
            config.loss.hold_gradient_ratios,
            context=term_context(config, dataset, steps_per_epoch),
        ),
        num_classes=dataset.num_classes,
        image_size=dataset.image_size,
        stored_shape=shape,
        steps_per_epoch=steps_per_epoch,
        class_weights=class_weights(config.loss.class_weights, dataset),
        has_unlabelled=has_unlabelled(config, dataset),
        automatic_batch=automatic,
    )


def with_batch(config: ConfigDict, train_size: int, num_classes: int) -> ConfigDict:
    """A copy of a config, with a batch size chosen from the data if `batch_size` is 0.

    The chosen size is the largest power of two that gives twelve steps per epoch, but at least two
    images per class, and between 8 and 64. The learning rate of the config is meant for 64 and is
    scaled in proportion (arXiv 1706.02677, section 2.1).

    Args:
        config: the settings.
        train_size: training images.
        num_classes: `K`.

    Examples:
        >>> from gini_jax.config import default_config
        >>> config = default_config()
        >>> config.batch_size, config.schedule.learning_rate = 0, 0.01
        >>> chosen = with_batch(config, train_size=300, num_classes=5)
        >>> chosen.batch_size, chosen.schedule.learning_rate
        (16, 0.0025)
    """
    config = config.copy_and_resolve_references()
    if config.batch_size == 0:
        power = 2 ** max((train_size // 12).bit_length() - 1, 0)
        two_each = 2 ** (2 * num_classes - 1).bit_length()
        config.batch_size = min(max(power, two_each, 8), 64)
        if train_size < config.batch_size:
            config.batch_size = min(max(power, 8), 64)
        config.schedule.learning_rate *= config.batch_size / 64
        for key in SCHEDULES.create(config.schedule).rates:
            config.schedule[key] *= config.batch_size / 64
    return config


def term_context(config: ConfigDict, dataset: Dataset, steps_per_epoch: int) -> TermContext:
    """The facts about a run that its terms may need.

    Raises:
        InputError: a term needs superclasses, which the data set lacks.
    """
    groups = len(dataset.superclass_names)
    if "superclasses" in needs_of(config.loss.terms) and not groups:
        raise InputError(
            f"the objective {config.objective} needs classes that form groups, but "
            f"{config.dataset.name} has none; set another objective, or a data set with "
            "superclasses, such as --config.dataset.name=cifar100"
        )
    of_shapes = tuple(k % max(groups, 1) for k in range(dataset.num_classes))
    counts = class_counts(dataset)
    return TermContext(
        (counts / counts.sum()).astype(np.float32),
        model_settings(config).get("scale", 1.0),
        dataset.superclass_of or of_shapes,
        steps_per_epoch,
    )


def has_unlabelled(config: ConfigDict, dataset: Dataset) -> bool:
    """Whether some training images are unlabelled, which the label -1 marks."""
    labels = dataset.splits["train"].labels
    if isinstance(labels, jax.ShapeDtypeStruct):
        return bool(config.dataset.labelled)
    return bool((labels < 0).any())


def class_weights(given: Any, dataset: Dataset) -> Float32[np.ndarray, " K"] | None:
    """The weights of the classes in cross-entropy, `[K]`; None if all are 1.

    Args:
        given: `config.loss.class_weights`: nothing, `K` numbers, or `balanced`, which gives
            `N / (K * N_k)`, so that the mean over the `N` training examples is 1. Cross-entropy
            stays a mean over the examples: it is not divided by the sum of their weights.
        dataset: the data; where it holds only shapes, `balanced` gives ones.

    Raises:
        InputError: there are not `K` numbers.
    """
    weights, num_classes = tuple(given), dataset.num_classes
    if not weights:
        return None
    if weights != ("balanced",):
        if len(weights) != num_classes:
            raise InputError(
                f"loss.class_weights has {len(weights)} numbers, but there are {num_classes} "
                f"classes; give {num_classes}, or --config.loss.class_weights=balanced"
            )
        return np.array(weights, np.float32)
    counts = class_counts(dataset)
    return (counts.sum() / (num_classes * np.maximum(counts, 1))).astype(np.float32)


def class_counts(dataset: Dataset) -> Int[np.ndarray, " K"]:
    """Training examples of each class; ones where the data set holds only shapes."""
    labels = dataset.splits["train"].labels
    if isinstance(labels, jax.ShapeDtypeStruct):
        return np.ones(dataset.num_classes, int)
    return np.bincount(labels[labels >= 0], minlength=dataset.num_classes)


def check_before_data(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> None:
    """Rejects a config that is wrong for every data set, before any data set is opened.

    Raises:
        InputError: a value breaks a rule, or a name is unknown.
    """
    check_config(config, num_devices(devices))
    model = tried(
        f"model.name={config.model.name!r}", NETWORK, lambda: create_model_of(config, num_classes=2)
    )
    if ":" in config.model.name:
        check_network(config.model.name, model, num_classes=2)
    check_layers(config.loss.layers, feature_shapes(model, 32))
    if config.loss.hold_gradient_ratios and any(map(weight_of, config.loss.terms.values())):
        check_measurable(model, tuple(config.loss.layers))
    check_terms(config, model)
    check_groups(config.optimizer.groups, model)
    check_functions(config)
    check_evaluations(config.evals, num_classes=10)


def check_measurable(model: nn.Module, layers: tuple[str, ...]) -> None:
    """Rejects layers where gradient ratios cannot be held.

    Raises:
        InputError: they are not measured there; see `why_not_measured`.
    """
    if why_not := why_not_measured(model, 32, layers):
        raise InputError(
            f"loss.hold_gradient_ratios=True with loss.layers={layers}: {why_not}; or set "
            "--config.loss.hold_gradient_ratios=False",
            fix=("loss.hold_gradient_ratios", False),
        )


def create_model_of(
    config: ConfigDict, num_classes: int, axis_name: str | None = AXIS
) -> nn.Module:
    """The network of a config; batch norm is synchronised over `axis_name`."""
    name, settings = config.model.name, model_settings(config)
    if not config.model.frozen:
        return create_model(name, num_classes, axis_name=axis_name, **settings)
    own = {key: settings[key] for key in ("dropout", "head", "scale") if key in settings}
    body = create_model(name, num_classes, axis_name=axis_name, **body_settings(config))
    return Frozen(body, num_classes, config.model.hidden, **own)
