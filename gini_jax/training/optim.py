"""Optimisers and learning-rate schedules by config, all from optax."""

from collections.abc import Callable
from typing import Any

import optax
from ml_collections import ConfigDict

from gini_jax.errors import InputError, unknown_name
from gini_jax.training.groups import groups_of, scaled_rates, with_decay

# Each function takes `config.schedule` and the number of steps in the warm-up, in an epoch and in
# the run. It returns the schedule after the warm-up.
SCHEDULES: dict[str, Callable[[Any, int, int, int], optax.Schedule]] = {
    "constant": lambda config, warmup, epoch, total: optax.constant_schedule(config.learning_rate),
    "step": lambda config, warmup, epoch, total: optax.piecewise_constant_schedule(
        config.learning_rate,
        {boundary * epoch - warmup: config.factor for boundary in config.boundaries},
    ),
    "cosine": lambda config, warmup, epoch, total: optax.cosine_decay_schedule(
        config.learning_rate, max(total - warmup, 1), alpha=config.final / config.learning_rate
    ),
    "onecycle": lambda config, warmup, epoch, total: optax.cosine_onecycle_schedule(
        max(total - warmup, 1), config.learning_rate, pct_start=config.onecycle_peak
    ),
}


def _l2(config: ConfigDict) -> optax.GradientTransformation:
    """Weight decay as PyTorch's optimisers do it: added to the gradient."""
    return optax.add_decayed_weights(config.weight_decay, with_decay(groups_of(config.groups)))


OPTIMIZERS: dict[str, Callable[[Any, optax.Schedule], optax.GradientTransformation]] = {
    "sgd": lambda config, rate: optax.chain(
        _l2(config), optax.sgd(rate, config.momentum or None, config.nesterov)
    ),
    "adam": lambda config, rate: optax.chain(_l2(config), optax.adam(rate)),
    "adamw": lambda config, rate: optax.adamw(
        rate, weight_decay=config.weight_decay, mask=with_decay(groups_of(config.groups))
    ),
    "adamax": lambda config, rate: optax.chain(_l2(config), optax.adamax(rate)),
}


def create_schedule(config: ConfigDict, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """The learning rate as a function of the step, counted from 0.

    Args:
        config: `config.schedule`: `name` (`constant`, `step`, `cosine`, `onecycle`),
            `learning_rate` (the highest), `warmup_epochs` (linear from 0), and depending on the
            name `boundaries` and `factor` (step: after each of these epochs, multiply by this),
            `final` (cosine: the last value), `onecycle_peak` (share of the steps before the peak).
        steps_per_epoch: optimiser steps in an epoch.
        num_epochs: epochs of the run.

    Returns:
        An optax schedule.

    Raises:
        InputError: the name is unknown, or the warm-up leaves no epoch.

    Examples:
        >>> from gini_jax.config import default_config
        >>> config = default_config().schedule
        >>> config.update(name="step", learning_rate=0.1, boundaries=(60,), factor=0.2)
        >>> schedule = create_schedule(config, steps_per_epoch=10, num_epochs=100)
        >>> print(f"{schedule(599):.3f} {schedule(600):.3f}")
        0.100 0.020
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = num_epochs * steps_per_epoch
    if not 0 <= warmup < max(total, 1):
        raise InputError(
            f"schedule.warmup_epochs={config.warmup_epochs} leaves none of the "
            f"num_epochs={num_epochs}; set --config.schedule.warmup_epochs=0.0, or a smaller one"
        )
    if config.name not in SCHEDULES:
        raise unknown_name("schedule.name", config.name, SCHEDULES)
    schedule = SCHEDULES[config.name](config, warmup, steps_per_epoch, total)
    if warmup == 0:
        return schedule
    ramp = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([ramp, schedule], [warmup])


def create_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser of a config.

    Args:
        config: `config.optimizer`: `name` (`sgd`, `adam`, `adamw`, `adamax`), `momentum` and
            `nesterov` (sgd), `weight_decay`, which acts on every parameter: added to the gradient
            as PyTorch's optimisers do (L2), or decoupled for `adamw`; `clip_norm`, the global norm
            that the gradient is first clipped to; `groups`, see `groups.Group`.
        schedule: the learning rate.

    Returns:
        An optax transformation.

    Raises:
        InputError: the name is unknown.

    Examples:
        >>> from gini_jax.config import default_config
        >>> optimizer = create_optimizer(default_config().optimizer, lambda step: 0.1)
        >>> optimizer.init({"kernel": 1.0}) is not None
        True
    """
    if config.name not in OPTIMIZERS:
        raise unknown_name("optimizer.name", config.name, OPTIMIZERS)
    optimizer = OPTIMIZERS[config.name](config, schedule)
    if config.groups:
        optimizer = optax.chain(optimizer, scaled_rates(groups_of(config.groups)))
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer
