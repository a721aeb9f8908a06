"""The networks by name.

A new network takes one new file and one line in `MODELS`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from gini_jax.config.registry import Registry, in_bounds, with_tuples
from gini_jax.errors import InputError, unknown_name
from gini_jax.losses.terms import needs_of
from gini_jax.models import cvt, mobile, resnet
from gini_jax.models.layers import NetworkSpec

OF_FROZEN = ("frozen", "hidden", "views")  # settings that are no attributes of a network


def _is_network(part: Any) -> bool:
    is_module = isinstance(part, type) and issubclass(part, nn.Module)
    return is_module or isinstance(part, NetworkSpec)


MODELS = Registry(
    "model.name",
    {
        **resnet.NETWORKS,
        **cvt.NETWORKS,
        **mobile.NETWORKS,
    },
    _is_network,
    "a flax.linen module, or a NetworkSpec",
    lambda part: part if isinstance(part, NetworkSpec) else NetworkSpec(part),
)


def create_model(name: str, num_classes: int, **overrides: Any) -> nn.Module:
    """A network by name, not yet initialised.

    Args:
        name: one of `MODELS`.
        num_classes: `K`.
        **overrides: attributes of the module, such as `width`, `stem`, `blocks`, `dropout`,
            `dtype` ("float32" or "bfloat16") and `axis_name`.

    Returns:
        A flax.linen module; `model.apply(variables, images, train=False)` gives
        `(logits [N, K], features: dict[str, Array])` for float images `[N, H, W, 3]`.

    Raises:
        InputError: the name or an override is unknown, or a value breaks its rule.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> model = create_model("resnet18", num_classes=10, width=8)
        >>> images = jnp.zeros((2, 32, 32, 3))
        >>> (logits, features), _ = jax.eval_shape(
        ...     model.init_with_output, jax.random.key(0), images)
        >>> logits.shape, features["stage4"].shape, features["pooled"].shape
        ((2, 10), (2, 4, 4, 64), (2, 64))
    """
    network = MODELS.find(name)
    rows = network.settings
    for key, value in overrides.items():
        if key == "axis_name":
            continue
        if key not in rows:
            raise unknown_name(f"setting of model {name}", key, rows)
        if not rows[key].accepts(value):
            raise unknown_name(f"model.{key}", value, rows[key].choices)
        if rows[key].bounds and not in_bounds(value, rows[key].bounds):
            raise InputError(
                f"model.{key}={value!r} must lie in {rows[key].bounds}; the default is "
                f"{rows[key].default!r}"
            )
    values = with_tuples(dict(network.values) | overrides)
    if "dtype" in values:
        values["dtype"] = jnp.dtype(values["dtype"])
    return network.module(num_classes=num_classes, **values)


def model_settings(config: ConfigDict) -> dict[str, Any]:
    """The attributes of the network that a config sets; an `auto` head is what the terms need.

    Examples:
        >>> from gini_jax.config import default_config
        >>> model_settings(default_config())["width"]
        64
        >>> model_settings(default_config("cosface"))["head"]
        'cosine'
    """
    found = {
        key: with_tuples(value)
        for key, value in config.model.items()
        if key not in ("name", "init", *OF_FROZEN)
    }
    if found.get("head") == "auto":
        found["head"] = next(iter(needs_of(config.loss.terms) & {"cosine", "probe"}), "linear")
    return found


def body_settings(config: ConfigDict) -> dict[str, Any]:
    """The attributes of the network, or of a frozen one's body, whose own head is not used."""
    found = model_settings(config)
    return found | {"head": "linear"} if config.model.frozen and "head" in found else found
