"""Learning-rate schedules, all from optax, each with its own settings.

A new schedule is one class and one line in `SCHEDULES`.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

import optax
from ml_collections import ConfigDict

from gini_jax.config.registry import NotNegative, Registry, is_callable_dataclass
from gini_jax.errors import InputError


class Steps(NamedTuple):
    """How long a run is, in steps.

    Attributes:
        warmup: steps of the linear warm-up.
        epoch: steps in an epoch.
        total: steps of the run.
    """

    warmup: int
    epoch: int
    total: int

    @property
    def after(self) -> int:
        """The number of steps after the warm-up; at least 1."""
        return max(self.total - self.warmup, 1)


class Schedule(Protocol):
    """The learning rate after the warm-up; the fields of the class are its settings.

    Attributes:
        extends: whether the rates of a run's first epochs do not depend on its length, so that a
            finished run can be extended.
        rates: names of settings that are learning rates; they are scaled with
            `schedule.learning_rate` if the batch size is chosen automatically.
    """

    extends: ClassVar[bool]
    rates: ClassVar[tuple[str, ...]]

    def __call__(self, rate: float, steps: Steps) -> optax.Schedule:
        """Creates the schedule from its highest rate; step 0 is the first after the warm-up."""


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same rate throughout."""

    extends, rates = True, ()

    def __call__(self, rate: float, steps: Steps) -> optax.Schedule:
        """See `Schedule`."""
        return optax.constant_schedule(rate)


@dataclasses.dataclass(frozen=True)
class Step:
    """Falls after some epochs, by the same factor each time.

    Attributes:
        boundaries: epochs after which the learning rate falls
        factor: learning rate is multiplied by this
    """

    boundaries: tuple[int, ...] = ()
    factor: Annotated[float, "(0, 1]"] = 0.2
    extends, rates = True, ()

    def __post_init__(self) -> None:
        """Refuses boundaries that are not epochs in increasing order."""
        given = list(self.boundaries)
        if any(not isinstance(b, int) or b < 1 for b in given) or sorted(set(given)) != given:
            raise InputError(
                f"schedule.boundaries={self.boundaries} must be positive whole numbers, in rising "
                "order, such as (60, 120)"
            )

    def __call__(self, rate: float, steps: Steps) -> optax.Schedule:
        """See `Schedule`."""
        at = {boundary * steps.epoch - steps.warmup: self.factor for boundary in self.boundaries}
        return optax.piecewise_constant_schedule(rate, at)

    def notes(self, num_epochs: int) -> list[str]:
        """Notes on boundaries after the end of the run."""
        beyond = tuple(b for b in self.boundaries if b >= num_epochs)
        text = f"schedule.boundaries: {beyond} have no effect in a run of {num_epochs} epochs"
        return [text] if beyond else []


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Half a cosine wave, from the highest rate down to the last one.

    Attributes:
        final: last learning rate
    """

    final: NotNegative = 0.0
    extends, rates = False, ("final",)

    def __call__(self, rate: float, steps: Steps) -> optax.Schedule:
        """See `Schedule`."""
        if self.final > rate:
            raise InputError(
                f"schedule.final={self.final} exceeds schedule.learning_rate={rate}; set "
                "--config.schedule.final=0.0",
                fix=("schedule.final", 0.0),
            )
        return optax.cosine_decay_schedule(rate, steps.after, alpha=self.final / rate)


@dataclasses.dataclass(frozen=True)
class OneCycle:
    """Rises to the highest rate and falls again, each along half a cosine wave.

    Attributes:
        onecycle_peak: share of the steps before the highest rate
    """

    onecycle_peak: Annotated[float, "(0, 1)"] = 0.3
    extends, rates = False, ()

    def __call__(self, rate: float, steps: Steps) -> optax.Schedule:
        """See `Schedule`."""
        return optax.cosine_onecycle_schedule(steps.after, rate, pct_start=self.onecycle_peak)


def _is_schedule(part: Any) -> bool:
    return is_callable_dataclass(part) and hasattr(part, "extends") and hasattr(part, "rates")


SCHEDULES = Registry(
    "schedule.name",
    {"constant": Constant, "step": Step, "cosine": Cosine, "onecycle": OneCycle},
    _is_schedule,
    "a dataclass like gini_jax.training.schedules.Schedule, with extends and rates",
)


def create_schedule(config: ConfigDict, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """The learning rate as a function of the step, counted from 0.

    Args:
        config: `config.schedule`: `name`, `learning_rate` (the highest), `warmup_epochs` (linear
            from 0), and the schedule's own settings.
        steps_per_epoch: optimiser steps in an epoch.
        num_epochs: epochs of the run.

    Returns:
        An optax schedule.

    Raises:
        InputError: the name is unknown, or the warm-up leaves no epoch.

    Examples:
        >>> from gini_jax.config import default_config, set_component
        >>> config = default_config()
        >>> set_component(config, "schedule", "step", learning_rate=0.1, boundaries=(60,))
        >>> schedule = create_schedule(config.schedule, steps_per_epoch=10, num_epochs=100)
        >>> print(f"{schedule(599):.3f} {schedule(600):.3f}")
        0.100 0.020
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    steps = Steps(warmup, steps_per_epoch, num_epochs * steps_per_epoch)
    if not 0 <= warmup < max(steps.total, 1):
        raise InputError(
            f"schedule.warmup_epochs={config.warmup_epochs} leaves none of the "
            f"num_epochs={num_epochs}; set --config.schedule.warmup_epochs=0.0, or a smaller one",
            fix=("schedule.warmup_epochs", 0.0),
        )
    schedule = SCHEDULES.create(config)(config.learning_rate, steps)
    if not callable(schedule):
        raise InputError(
            f"schedule.name={config.name!r} returned a {type(schedule).__name__}; called with the "
            "highest rate and Steps, it must return a function from the step to the rate; "
            "docs/extending.md shows one"
        )
    if warmup == 0:
        return schedule
    ramp = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([ramp, schedule], [warmup])
