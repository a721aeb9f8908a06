"""Random search: settings drawn from ranges."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gini_jax.errors import InputError


class Range(NamedTuple):
    """The range that a setting is drawn from.

    Attributes:
        low, high: the bounds.
        log: whether its logarithm is uniform, rather than the value.
        whole: whether the setting is a whole number.
    """

    low: float
    high: float
    log: bool
    whole: bool

    def at(self, u: float) -> float | int:
        """The value at a place between 0 and 1, with three significant digits.

        Examples:
            >>> Range(0.001, 0.1, log=True, whole=False).at(0.5)
            0.01
            >>> Range(16, 256, log=False, whole=True).at(0.5)
            136
        """
        margin = 0.5 if self.whole else 0.0  # so that the ends are as probable as the others
        low, high = self.low - margin, self.high + margin
        value = low * (high / low) ** u if self.log else low + u * (high - low)
        if self.whole:
            return int(min(max(math.floor(value + 0.5), self.low), self.high))
        return float(f"{value:.3g}")


def range_of(text: str, default: Any) -> Range | None:
    """The range that the values of `--vary` name; None if they name no range.

    Args:
        text: `log(LOW,HIGH)` or `uniform(LOW,HIGH)`.
        default: the setting's default value.

    Raises:
        InputError: the bounds are not numbers, or out of order.

    Examples:
        >>> range_of("log(1e-4,1e-1)", 0.1)
        Range(low=0.0001, high=0.1, log=True, whole=False)
        >>> range_of("0.1,0.2", 0.1)
    """
    match = re.fullmatch(r"(log|uniform)\((.*)\)", text)
    if not match:
        return None
    kind, bounds = match.groups()
    try:
        low, high = map(float, bounds.split(","))
    except ValueError as error:
        raise InputError(f"{text}: give two numbers, as in {kind}(0.001,0.1)") from error
    if not low < high or (kind == "log" and low <= 0):
        above = " above 0" if kind == "log" else ""
        raise InputError(f"{text}: give the smaller number{above} first, as in {kind}(0.001,0.1)")
    if isinstance(default, int) and not (low.is_integer() and high.is_integer()):
        raise InputError(f"{text}: the setting is a whole number; give whole bounds, as in 1,4")
    if isinstance(default, bool) or not isinstance(default, (int, float)):
        raise InputError(f"{text}: only numbers are drawn from a range; give values, as in a,b")
    return Range(low, high, kind == "log", isinstance(default, int))


def draws(
    settings: Mapping[str, Range | Sequence[Any]], trials: int, seed: int
) -> list[dict[str, Any]]:
    """Settings of random trials; the same for every objective.

    Args:
        settings: by path, a range, or values to choose from.
        trials: the number of trials.
        seed: the seed of the draws.

    Examples:
        >>> draws({"seed": [1, 2]}, 3, seed=0)
        [{'seed': 2}, {'seed': 1}, {'seed': 1}]
    """
    rng = np.random.default_rng(seed)
    return [
        {
            path: there.at(u) if isinstance(there, Range) else there[int(u * len(there))]
            for (path, there), u in zip(settings.items(), rng.random(len(settings)), strict=True)
        }
        for _ in range(trials)
    ]
