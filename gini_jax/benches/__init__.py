"""Benches: what the features of finished runs are good for, beyond the accuracy on their classes.

A new bench takes one new file and one line in `NAMES`. A file that measures a network has

- `KEYS`: its numbers, each with a title and whether larger is better;
- `unfit(subject)`, if it does not fit every run: why it cannot measure one, "" if it can;
- `measure(subject)`: these numbers, and arrays `BENCH/KEY` for its picture;
- `draw(arrays)`, if it has curves: a figure of the arrays of each run, by group. Without it the
  numbers are drawn. With `EACH_RUN = True`, `draw(arrays, class_names)` is called for each group
  with the arrays of its first run.

A file that compares the runs of a sweep has `SETTING`, the setting that the sweep varied, instead.
"""

import importlib
from types import ModuleType

from gini_jax.errors import unknown_name

NAMES = (
    "retrieval",
    "fewshot",
    "shift",
    "robust",
    "corruptions",
    "outliers",
    "prune",
    "explain",
    "small",
    "noise",
)


def benches_of(text: str) -> dict[str, ModuleType]:
    """The benches that a flag names, separated by commas; `all` is all.

    Raises:
        InputError: a name is unknown.

    Examples:
        >>> list(benches_of("prune,retrieval"))
        ['retrieval', 'prune']
    """
    given = NAMES if text == "all" else text.split(",")
    for name in given:
        if name not in NAMES:
            raise unknown_name("bench", name, NAMES)
    return {x: importlib.import_module(f"gini_jax.benches.{x}") for x in NAMES if x in given}
