"""What a trained network is exported as: weights under PyTorch's names, and StableHLO."""

import io
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from gini_jax.errors import InputError, first_line
from gini_jax.evals.extract import forward_pass
from gini_jax.models import to_torch
from gini_jax.models.frozen import whole_of
from gini_jax.platform import tracing_for
from gini_jax.trained import Trained

Kind: TypeAlias = Literal["weights", "network", "whole"]


class Format(NamedTuple):
    """A format of exported networks.

    Attributes:
        file: its name.
        data: a function from a trained network to the file's contents.
        kind: whether the file holds `weights`, under PyTorch's names; the `network`, which
            normalises its input; or the `whole`, from uint8 images to probabilities.
        needs: the library that it needs; "" for none.
    """

    file: str
    data: Callable[[Trained], bytes]
    kind: Kind = "network"
    needs: str = ""


def to_stablehlo(trained: Trained) -> bytes:
    """The network as a portable program, from images `[N, H, W, 3]` in `[0, 1]` to logits.

    The batch size is symbolic; `jax.export.deserialize(data).call(images)` runs it.

    Raises:
        InputError: the network needs the number of images as a constant.
    """

    @jax.jit
    def predict(images: jax.Array) -> jax.Array:
        config = trained.config.dataset
        return forward_pass(trained.model, config, trained.variables, images)[0]

    (batch,) = jax.export.symbolic_shape("batch")
    size = trained.image_size
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    try:
        with tracing_for("cpu"):  # so that every machine exports the same program
            program = jax.export.export(predict, platforms=("cpu", "cuda", "tpu"))(images)
    except TypeError as error:
        raise InputError(
            f"--format=stablehlo: model.name={trained.config.model.name!r} needs the number of "
            f"images as a Python integer, but the program accepts any number "
            f"({first_line(error)}); in its module write images.shape[0] instead of len(images)"
        ) from error
    return bytes(program.serialize())


def to_safetensors(trained: Trained) -> bytes:
    """The weights under PyTorch's names, as a safetensors file."""
    from safetensors.numpy import save

    return bytes(save(_weights(trained)))


def to_torch_file(trained: Trained) -> bytes:
    """The weights under PyTorch's names, as `torch.save` writes them."""
    import torch

    file = io.BytesIO()
    torch.save({name: torch.tensor(value) for name, value in _weights(trained).items()}, file)
    return file.getvalue()


def _weights(trained: Trained) -> dict[str, Any]:
    """The arrays by name; a hidden layer and its head are `hidden.*` and `head.*`."""
    name, variables = trained.config.model.name, jax.device_get(trained.variables)
    whole, own = whole_of(variables), {}
    if "hidden" in variables["params"]:
        whole["params"] = {key: x for key, x in whole["params"].items() if key != "head"}
        layers = {"hidden": variables["params"]["hidden"], **variables["params"]["head"]}
        for layer, arrays in zip(("hidden", "head"), layers.values(), strict=True):
            own[f"{layer}.weight"] = np.ascontiguousarray(arrays["kernel"].T)
            own[f"{layer}.bias"] = np.asarray(arrays["bias"])
    return to_torch(name, whole) | own
