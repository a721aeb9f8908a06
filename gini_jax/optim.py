"""Optimisers and learning-rate schedules by config, all of optax."""

from collections.abc import Callable
from typing import Any

import optax

from gini_jax.errors import InputError, unknown_name


def create_schedule(config: Any, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """The learning rate as a function of the step, counted from 0.

    Args:
        config: `config.schedule`: `name` (`constant`, `step`, `cosine`, `onecycle`),
            `learning_rate` (the highest), `warmup_epochs` (linear from 0), and per name
            `boundaries` and `factor` (step: after these epochs, times this), `final` (cosine: the
            last value), `onecycle_peak` (share of the steps at which the peak stands).
        steps_per_epoch: optimiser steps in an epoch.
        num_epochs: epochs of the run.

    Returns:
        An optax schedule.

    Raises:
        InputError: the name is unknown, or the warm-up leaves no epoch.

    Example:
        >>> from gini_jax.config import default_config
        >>> config = default_config().schedule
        >>> config.update(name="step", learning_rate=0.1, boundaries=(60,), factor=0.2)
        >>> schedule = create_schedule(config, steps_per_epoch=10, num_epochs=100)
        >>> print(f"{schedule(599):.3f} {schedule(600):.3f}")
        0.100 0.020
    """
    peak, warmup = config.learning_rate, round(config.warmup_epochs * steps_per_epoch)
    total = num_epochs * steps_per_epoch
    if not 0 <= warmup < max(total, 1):
        raise InputError(
            f"schedule.warmup_epochs={config.warmup_epochs} leaves none of the "
            f"num_epochs={num_epochs}; warm up for fewer epochs"
        )
    builders: dict[str, Callable[[], optax.Schedule]] = {
        "constant": lambda: optax.constant_schedule(peak),
        "step": lambda: optax.piecewise_constant_schedule(
            peak, {epoch * steps_per_epoch - warmup: config.factor for epoch in config.boundaries}
        ),
        "cosine": lambda: optax.cosine_decay_schedule(
            peak, max(total - warmup, 1), alpha=config.final / peak
        ),
        "onecycle": lambda: optax.cosine_onecycle_schedule(
            max(total - warmup, 1), peak, pct_start=config.onecycle_peak
        ),
    }
    if config.name not in builders:
        raise unknown_name("schedule.name", config.name, builders)
    schedule = builders[config.name]()
    if warmup == 0:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])


def create_optimizer(config: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser of a config.

    Args:
        config: `config.optimizer`: `name` (`sgd`, `adam`, `adamw`, `adamax`), `momentum` and
            `nesterov` (sgd), `weight_decay`, which acts on every parameter: added to the gradient
            as PyTorch's optimisers do (L2), or decoupled for `adamw`.
        schedule: the learning rate.

    Returns:
        An optax transformation.

    Raises:
        InputError: the name is unknown.

    Example:
        >>> from gini_jax.config import default_config
        >>> optimizer = create_optimizer(default_config().optimizer, lambda step: 0.1)
        >>> optimizer.init({"kernel": 1.0}) is not None
        True
    """
    l2 = optax.add_decayed_weights(config.weight_decay)
    momentum = config.momentum or None
    builders: dict[str, Callable[[], optax.GradientTransformation]] = {
        "sgd": lambda: optax.chain(l2, optax.sgd(schedule, momentum, config.nesterov)),
        "adam": lambda: optax.chain(l2, optax.adam(schedule)),
        "adamw": lambda: optax.adamw(schedule, weight_decay=config.weight_decay),
        "adamax": lambda: optax.chain(l2, optax.adamax(schedule)),
    }
    if config.name not in builders:
        raise unknown_name("optimizer.name", config.name, builders)
    return builders[config.name]()
