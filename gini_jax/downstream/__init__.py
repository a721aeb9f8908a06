"""Benches: what the features of finished runs are good for, beyond the accuracy on their classes.

A new bench takes one new file and one line in `BENCHES`; a plugin is such a module, or a class. A
file that measures a network has

- `KEYS`: its numbers, each with a title and whether larger is better;
- `unfit(subject)`, if some runs do not support it: the reason, or "" if the run does;
- `measure(subject)`: these numbers, and arrays `BENCH/KEY` for its picture;
- `draw(arrays)`, if it has curves: a figure of the arrays of each run, by group. Without it the
  numbers are drawn. With `EACH_RUN = True`, `draw(arrays, class_names)` is called for each group
  with the arrays of its first run.

A file that compares the runs of a sweep has `SETTING`, the setting that the sweep varied, instead.
"""

from typing import Any

from gini_jax.config.registry import Registry
from gini_jax.downstream import (
    corruptions,
    explain,
    fewshot,
    noise,
    outliers,
    prune,
    retrieval,
    robust,
    shift,
    small,
)

BENCHES = Registry(
    "bench",
    {
        "retrieval": retrieval,
        "fewshot": fewshot,
        "shift": shift,
        "robust": robust,
        "corruptions": corruptions,
        "outliers": outliers,
        "prune": prune,
        "explain": explain,
        "small": small,
        "noise": noise,
    },
    lambda part: (hasattr(part, "KEYS") and hasattr(part, "measure")) or hasattr(part, "SETTING"),
    "a class or a module with KEYS and measure",
)


def benches_of(text: str) -> dict[str, Any]:
    """The benches that a flag names, separated by commas; `all` means all built-in benches.

    Raises:
        InputError: a name is unknown.

    Examples:
        >>> list(benches_of("prune,retrieval"))
        ['retrieval', 'prune']
    """
    given = list(BENCHES) if text == "all" else text.split(",")
    found = {name: BENCHES.find(name) for name in given}
    return {name: found[name] for name in dict.fromkeys([*BENCHES, *given]) if name in found}
