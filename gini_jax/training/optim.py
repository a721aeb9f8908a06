"""Optimisers, all from optax, each with its own settings.

A new optimiser is one class and one line in `OPTIMIZERS`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import optax
from ml_collections import ConfigDict

from gini_jax.config.registry import Below1, Registry, is_callable_dataclass
from gini_jax.errors import InputError
from gini_jax.training.groups import groups_of, scaled_rates, with_decay


class Decay(NamedTuple):
    """Weight decay.

    Attributes:
        weight: the coefficient.
        mask: optax's mask of the parameters that it acts on; None means all.
    """

    weight: float
    mask: Callable[[Any], Any] | None

    def l2(self) -> optax.GradientTransformation:
        """Adds the decay to the gradient, as PyTorch's optimisers do."""
        return optax.add_decayed_weights(self.weight, self.mask)


class Optimizer(Protocol):
    """An optimiser; the fields of the class are its settings."""

    def __call__(self, rate: optax.Schedule, decay: Decay) -> optax.GradientTransformation:
        """Creates the optax transformation, including weight decay."""


@dataclasses.dataclass(frozen=True)
class Sgd:
    """Gradient descent with momentum.

    Attributes:
        momentum: momentum
        nesterov: Nesterov momentum
    """

    momentum: Below1 = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Refuses Nesterov's momentum without momentum."""
        if self.nesterov and not self.momentum:
            raise InputError(
                "optimizer.nesterov=True needs momentum; set --config.optimizer.momentum=0.9",
                fix=("optimizer.momentum", 0.9),
            )

    def __call__(self, rate: optax.Schedule, decay: Decay) -> optax.GradientTransformation:
        """See `Optimizer`."""
        return optax.chain(decay.l2(), optax.sgd(rate, self.momentum or None, self.nesterov))


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam; weight decay is part of the gradient."""

    def __call__(self, rate: optax.Schedule, decay: Decay) -> optax.GradientTransformation:
        """See `Optimizer`."""
        return optax.chain(decay.l2(), optax.adam(rate))


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay."""

    def __call__(self, rate: optax.Schedule, decay: Decay) -> optax.GradientTransformation:
        """See `Optimizer`."""
        return optax.adamw(rate, weight_decay=decay.weight, mask=decay.mask)


@dataclasses.dataclass(frozen=True)
class Adamax:
    """Adam with the infinity norm; weight decay is part of the gradient."""

    def __call__(self, rate: optax.Schedule, decay: Decay) -> optax.GradientTransformation:
        """See `Optimizer`."""
        return optax.chain(decay.l2(), optax.adamax(rate))


OPTIMIZERS = Registry(
    "optimizer.name",
    {"sgd": Sgd, "adam": Adam, "adamw": AdamW, "adamax": Adamax},
    is_callable_dataclass,
    "a dataclass like gini_jax.training.optim.Optimizer",
)


def create_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser of a config.

    Args:
        config: `config.optimizer`: `name`, the optimiser's own settings, `weight_decay`, which acts
            on every parameter; `clip_norm`, the global norm that the gradient is first clipped to;
            `groups`, see `groups.Group`.
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
    groups = groups_of(config.groups)
    optimizer = OPTIMIZERS.create(config)(schedule, Decay(config.weight_decay, with_decay(groups)))
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise InputError(
            f"optimizer.name={config.name!r} returned a {type(optimizer).__name__}; called with a "
            "schedule and a Decay, it must return an optax.GradientTransformation; "
            "docs/extending.md shows one"
        )
    if groups:
        optimizer = optax.chain(optimizer, scaled_rates(groups))
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer
