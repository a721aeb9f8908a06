"""The networks by name, and what may be set of each."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from gini_jax.errors import unknown_name
from gini_jax.models.cvt import CvT
from gini_jax.models.layers import ACTIVATIONS
from gini_jax.models.resnet import BLOCKS, ResNet

_BOTTLENECK: dict[str, Any] = {"block": "bottleneck"}

# name -> (module, what it sets). ResNet-17 is not defined in public text; this is our reading of
# it: 1 + (1 + 1 + 1 + 2) * 3 + 1 = 17 layers.
MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "resnet17": (ResNet, _BOTTLENECK | {"blocks": (1, 1, 1, 2)}),
    "resnet18": (ResNet, {"blocks": (2, 2, 2, 2)}),
    "resnet50": (ResNet, _BOTTLENECK | {"blocks": (3, 4, 6, 3)}),
    "cvt13": (CvT, {"blocks": (1, 2, 10)}),
    "cvt21": (CvT, {"blocks": (1, 4, 16)}),
    "cvt_w24": (
        CvT,
        {"widths": (192, 768, 1024), "blocks": (2, 2, 20), "heads": (3, 12, 16), "drop_path": 0.3},
    ),
    "resnet_digits": (ResNet, {"blocks": (1, 1, 1, 1), "width": 16, "activation": "silu"}),
}

_CHOICES = {
    "stem": ("cifar", "imagenet"),
    "block": tuple(BLOCKS),
    "activation": tuple(ACTIVATIONS),
    "dtype": ("float32", "bfloat16"),
}


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
        InputError: the name or an override is unknown, or a value is not among the known ones.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = create_model("resnet18", num_classes=10, width=8)
        >>> images = jnp.zeros((2, 32, 32, 3))
        >>> (logits, features), _ = jax.eval_shape(
        ...     model.init_with_output, jax.random.key(0), images)
        >>> logits.shape, features["stage4"].shape, features["pooled"].shape
        ((2, 10), (2, 4, 4, 64), (2, 64))
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    module, values = MODELS[name]
    known = {field.name for field in dataclasses.fields(module)} - {"parent", "name"}
    for key, value in overrides.items():
        if key not in known:
            raise unknown_name(f"setting of model {name}", key, known - {"num_classes"})
        if key in _CHOICES and value not in _CHOICES[key]:
            raise unknown_name(f"model.{key}", value, _CHOICES[key])
    values = values | overrides
    if "dtype" in values:
        values["dtype"] = jnp.dtype(values["dtype"])
    return module(num_classes=num_classes, **values)
