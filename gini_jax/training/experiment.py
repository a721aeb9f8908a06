"""From a config to the fixed parts of a run, checked before anything is built."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from gini_jax.checks import check_config, check_layers
from gini_jax.config import model_settings
from gini_jax.data.source import Dataset
from gini_jax.devices import AXIS, num_devices
from gini_jax.errors import InputError
from gini_jax.losses.terms import Objective
from gini_jax.models import create_model
from gini_jax.training.optim import create_optimizer, create_schedule
from gini_jax.training.step import Experiment, feature_shapes


def build_experiment(
    config: Any, dataset: Dataset, devices: Sequence[jax.Device] | None = None
) -> Experiment:
    """The model, optimiser, schedule and objective that a config gives for a data set.

    Raises:
        InputError: a value breaks a rule; see `check_config`.
    """
    check_config(config, num_devices(devices))
    train_size = dataset.splits["train"].labels.shape[0]
    steps_per_epoch = train_size // config.batch_size
    if steps_per_epoch == 0:
        raise InputError(
            f"batch_size={config.batch_size} exceeds the {train_size} training images; set a "
            "smaller --config.batch_size"
        )
    schedule = create_schedule(config.schedule, steps_per_epoch, config.num_epochs)
    return Experiment(
        config=config.copy_and_resolve_references(),
        model=create_model_of(config, dataset.num_classes),
        optimizer=create_optimizer(config.optimizer, schedule),
        schedule=jax.jit(schedule),
        objective=Objective(config.loss.terms, config.loss.running_decay),
        num_classes=dataset.num_classes,
        image_size=dataset.image_size,
        stored_shape=dataset.splits["train"].images.shape[1:],
        steps_per_epoch=steps_per_epoch,
    )


def check_before_data(config: Any, devices: Sequence[jax.Device] | None = None) -> None:
    """Rejects a config that is wrong for every data set, before any data set is opened.

    Raises:
        InputError: a value breaks a rule, or a name is unknown.
    """
    check_config(config, num_devices(devices))
    model = create_model_of(config, num_classes=2)
    check_layers(config.loss.layers, feature_shapes(model, 32))
    create_schedule(config.schedule, steps_per_epoch=1000, num_epochs=config.num_epochs)


def create_model_of(config: Any, num_classes: int, axis_name: str | None = AXIS) -> nn.Module:
    """The network of a config; batch norm is synchronised over `axis_name`."""
    settings = model_settings(config)
    return create_model(config.model.name, num_classes, axis_name=axis_name, **settings)
