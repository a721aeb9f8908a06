"""Programs that train heads of one kind, compiled once for each shape, and the terms in them."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from gini_jax.config.change import set_term, set_terms
from gini_jax.errors import InputError, unknown_name
from gini_jax.heads.training import Head, Run, Settings, hidden_of, logits_of
from gini_jax.losses.terms import PRESETS


def keys_of(seed: int, count: int) -> jax.Array:
    """Keys of the networks; that of the first is the seed's own."""
    key = jax.random.key(seed)
    return jnp.stack([key, *(jax.random.fold_in(key, i) for i in range(1, count))])


class Programs(NamedTuple):
    """Compiled functions of many runs, as in `Head`; `chosen` picks parameters run by run."""

    train: Any
    start: Any
    advance: Any
    accuracy: Any
    chosen: Any


@lru_cache(maxsize=128)
def programs(settings: Settings, num_classes: int) -> Programs:
    """The functions that train networks which differ in their keys; compiled once a shape."""
    own = Head(settings, num_classes)
    runs = Run(0, None, None, None, None, None, None, None)

    def accuracy(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        layers = {k: v for k, v in params.items() if k != "terms"}
        return (logits_of(layers, hidden_of(layers, x)).argmax(axis=1) == labels).mean()

    def chosen(risen: jax.Array, new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(risen, a, b), new, old)

    return Programs(
        jax.jit(jax.vmap(own.train, (runs, None, None))),
        jax.jit(jax.vmap(own.start, (runs, None, None))),
        jax.jit(jax.vmap(own.advance, (0, runs, None, None, None))),
        jax.jit(jax.vmap(accuracy, (0, None, None))),
        jax.jit(jax.vmap(chosen)),
    )


def terms_of(objective: str | Mapping[str, Any], loss_settings: Mapping[str, Any]) -> Any:
    """The terms of an objective with their sections, as `Settings.terms` holds them.

    Raises:
        InputError: a name is unknown.

    Examples:
        >>> terms_of("kl", {"kl.target": "present"})
        (('kl', (('target', 'present'), ('weight', 0.5))),)
    """
    config = ConfigDict({"objective": "ce", "loss": {"terms": {}}})
    if not isinstance(loss_settings, Mapping):
        raise InputError(
            f"loss_settings={loss_settings!r} must map settings to values, such as "
            "{'supcon.temperature': 0.2}"
        )
    if isinstance(objective, Mapping):
        for name, section in objective.items():
            weight = section.get("weight", 1.0) if isinstance(section, Mapping) else section
            if not isinstance(weight, (int, float)) or isinstance(weight, bool):
                raise InputError(
                    f"objective has the weight {weight!r} for {name!r}; it must be a number"
                )
        set_terms(config, objective)
    elif not isinstance(objective, str):
        raise InputError(
            f"objective={objective!r} must be a name, such as 'supcon', or terms with their "
            "weights, such as {'gini': 0.5}"
        )
    elif objective in PRESETS:
        set_terms(config, PRESETS[objective])
    elif ":" in str(objective):
        set_term(config, str(objective).rpartition(":")[2], name=objective, weight=1.0)
    else:
        raise unknown_name("objective", objective, PRESETS)
    for path, value in loss_settings.items():
        term, _, setting = path.partition(".")
        if term not in config.loss.terms or not setting:
            raise unknown_name("loss_settings", path, [f"{x}.SETTING" for x in config.loss.terms])
        set_term(config, term, **{setting: value})
    return tuple(
        (key, tuple((k, _hashable(v)) for k, v in sorted(section.items())))
        for key, section in config.loss.terms.items()
    )


def _hashable(value: Any) -> Any:
    if hasattr(value, "items"):
        raise InputError(f"a weight of layers, {dict(value)}, has no meaning here; give one number")
    return tuple(value) if isinstance(value, list) else value
