"""Parameter groups: patterns over parameter names set learning rates and weight decay."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gini_jax.errors import InputError, unknown_name


class Group(NamedTuple):
    """A row of `config.optimizer.groups`.

    Attributes:
        pattern: regular expression for the whole name of a parameter, such as `head/.*`.
        rate: what its learning rate is multiplied by; 0 freezes it.
        decay: 1, or 0 for no weight decay.
    """

    pattern: str
    rate: float = 1.0
    decay: float = 1.0


def groups_of(rows: Sequence[Any]) -> tuple[Group, ...]:
    """The groups that a config gives, checked.

    Raises:
        InputError: a row is not a valid group.

    Examples:
        >>> groups_of((("head/.*", 10.0), (".*/bias", 1.0, 0.0)))[1]
        Group(pattern='.*/bias', rate=1.0, decay=0.0)
    """
    groups = []
    for row in rows:
        try:
            group = Group(*row)
            re.compile(group.pattern)
            fits = float(group.rate) >= 0 and float(group.decay) in (0, 1)
        except (TypeError, ValueError, re.error):
            fits = False
        if not fits or isinstance(row, str):
            raise InputError(
                f"optimizer.groups has the row {row!r}; a row is a pattern, a factor of the "
                "learning rate and, if given, 1 or 0 for weight decay: "
                """--config.optimizer.groups="(('head/.*', 10.0), ('.*/bias', 1.0, 0.0))\""""
            )
        groups.append(group)
    return tuple(groups)


def check_groups(rows: Sequence[Any], model: nn.Module) -> None:
    """Refuses patterns that match no parameter of a network.

    Raises:
        InputError: names the pattern and the nearest parameters.
    """
    if not (groups := groups_of(rows)):
        return
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    paths = jax.tree_util.tree_leaves_with_path(shapes)
    names = [_name(path) for path, _ in paths]
    for group in groups:
        if not any(re.fullmatch(group.pattern, name) for name in names):
            raise unknown_name("pattern in optimizer.groups", group.pattern, names)


def of_parameters(groups: Sequence[Group], params: Any) -> Any:
    """A tree like `params` that holds each array's group: the first whose pattern matches.

    Examples:
        >>> groups = groups_of((("head/.*", 10.0),))
        >>> of_parameters(groups, {"head": {"bias": 0.0}, "stem": 0.0})["head"]["bias"].rate
        10.0
    """

    def of(path: Any, _: Any) -> Group:
        name = _name(path)
        return next((g for g in groups if re.fullmatch(g.pattern, name)), Group(".*"))

    return jax.tree_util.tree_map_with_path(of, params)


def scaled_rates(groups: Sequence[Group]) -> optax.GradientTransformation:
    """Multiplies the update of each parameter by its group's factor."""

    def update(updates: Any, params: Any) -> Any:
        found = of_parameters(groups, updates)
        return jax.tree.map(lambda u, group: u * group.rate, updates, found)

    return optax.stateless(update)


def with_decay(groups: Sequence[Group]) -> Callable[[Any], Any] | None:
    """A function for optax's `mask`: which parameters have weight decay; None means all."""
    if not groups:
        return None
    is_group = lambda leaf: isinstance(leaf, Group)  # noqa: E731
    return lambda params: jax.tree.map(
        lambda group: bool(group.decay), of_parameters(groups, params), is_leaf=is_group
    )


def _name(path: Any) -> str:
    """A parameter's name, without the `model/` that networks get beside learned terms."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removeprefix("model/")
