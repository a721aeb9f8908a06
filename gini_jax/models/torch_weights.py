"""PyTorch weights to ours: torchvision and timm ResNets, Hugging Face's and the authors' CvTs."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gini_jax.errors import InputError
from gini_jax.models.registry import create_model

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}

# Rules by dialect: a pattern over our path without its leaf, and their module's name.
# `{n-1}` counts from 0 what we count from 1.
_RESNET = [
    (r"stem/conv", "conv1"),
    (r"stem/norm", "bn1"),
    (r"stage(\d+)_block(\d+)/shortcut/conv", "layer{0}.{1-1}.downsample.0"),
    (r"stage(\d+)_block(\d+)/shortcut/norm", "layer{0}.{1-1}.downsample.1"),
    (r"stage(\d+)_block(\d+)/conv(\d+)/conv", "layer{0}.{1-1}.conv{2}"),
    (r"stage(\d+)_block(\d+)/conv(\d+)/norm", "layer{0}.{1-1}.bn{2}"),
    (r"head/dense", "fc"),
]
_HF_LAYER = "cvt.encoder.stages.{0-1}.layers.{1-1}."
_CVT_HUGGING_FACE = [
    (r"stage(\d+)_embed", "cvt.encoder.stages.{0-1}.embedding.convolution_embeddings.projection"),
    (r"stage(\d+)_norm", "cvt.encoder.stages.{0-1}.embedding.convolution_embeddings.normalization"),
    (r"stage(\d+)_block(\d+)/norm1", _HF_LAYER + "layernorm_before"),
    (r"stage(\d+)_block(\d+)/norm2", _HF_LAYER + "layernorm_after"),
    (r"stage(\d+)_block(\d+)/mlp1", _HF_LAYER + "intermediate.dense"),
    (r"stage(\d+)_block(\d+)/mlp2", _HF_LAYER + "output.dense"),
    (r"stage(\d+)_block(\d+)/out", _HF_LAYER + "attention.output.dense"),
    (
        r"stage(\d+)_block(\d+)/(query|key|value)/conv",
        _HF_LAYER
        + "attention.attention.convolution_projection_{2}.convolution_projection.convolution",
    ),
    (
        r"stage(\d+)_block(\d+)/(query|key|value)/norm",
        _HF_LAYER
        + "attention.attention.convolution_projection_{2}.convolution_projection.normalization",
    ),
    (
        r"stage(\d+)_block(\d+)/(query|key|value)/dense",
        _HF_LAYER + "attention.attention.projection_{2}",
    ),
    (r"norm", "layernorm"),
    (r"head/dense", "classifier"),
]
_MS_BLOCK = "stage{0-1}.blocks.{1-1}."
_CVT_MICROSOFT = [
    (r"stage(\d+)_embed", "stage{0-1}.patch_embed.proj"),
    (r"stage(\d+)_norm", "stage{0-1}.patch_embed.norm"),
    (r"stage(\d+)_block(\d+)/norm(\d)", _MS_BLOCK + "norm{2}"),
    (r"stage(\d+)_block(\d+)/mlp(\d)", _MS_BLOCK + "mlp.fc{2}"),
    (r"stage(\d+)_block(\d+)/out", _MS_BLOCK + "attn.proj"),
    (r"stage(\d+)_block(\d+)/(q|k|v)\w+/conv", _MS_BLOCK + "attn.conv_proj_{2}.conv"),
    (r"stage(\d+)_block(\d+)/(q|k|v)\w+/norm", _MS_BLOCK + "attn.conv_proj_{2}.bn"),
    (r"stage(\d+)_block(\d+)/(q|k|v)\w+/dense", _MS_BLOCK + "attn.proj_{2}"),
    (r"norm", "norm"),
    (r"head/dense", "head"),
]
_DIALECTS = {
    "resnet": {"torchvision or timm": _RESNET},
    "cvt": {"Hugging Face": _CVT_HUGGING_FACE, "microsoft/CvT": _CVT_MICROSOFT},
}
_CLS_TOKEN = {"Hugging Face": "cvt.encoder.stages.2.cls_token", "microsoft/CvT": "stage2.cls_token"}


def from_torch(
    name: str,
    state_dict: Mapping[str, Any],
    num_classes: int | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """PyTorch weights as variables of `create_model(name, ...)`.

    Args:
        name: the model's name.
        state_dict: NumPy arrays or tensors in the naming of torchvision's or timm's ResNets, of
            Hugging Face's `CvtForImageClassification`, or of the microsoft/CvT checkpoints.
        num_classes: `K`; that of the weights by default. With another one the head is left at its
            initial value, and a line says so.
        **overrides: as in `create_model`.

    Returns:
        `{"params": ..., "batch_stats": ...}` of NumPy arrays, float32.

    Raises:
        InputError: the names or shapes are those of no known dialect; it lists the missing and the
            unexpected ones.
    """
    weights = {key: _to_numpy(value) for key, value in state_dict.items()}
    weights = {key: value for key, value in weights.items() if "num_batches" not in key}
    family = "cvt" if name.startswith("cvt") else "resnet"
    heads = [weights[f"{h}.bias"] for h in ("fc", "classifier", "head") if f"{h}.bias" in weights]
    classes = num_classes or (len(heads[0]) if heads else 1000)
    model = create_model(name, classes, **overrides)
    init = jax.jit(partial(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    paths = flatten_dict(jax.eval_shape(init), sep="/")
    found = {
        dialect: {path: _torch_name(path, rules, dialect) for path in paths}
        for dialect, rules in _DIALECTS[family].items()
    }
    dialect, names = max(found.items(), key=lambda item: len(set(item[1].values()) & set(weights)))
    missing = sorted(set(names.values()) - set(weights))
    unexpected = sorted(set(weights) - set(names.values()))
    if missing or unexpected:
        raise InputError(
            f"these weights are not those of {name} in the naming of {dialect}, the nearest known; "
            f"missing: {_shortened(missing)}; unexpected: {_shortened(unexpected)}"
        )
    variables, initial = {}, None
    for path, like in paths.items():
        value = _to_our_layout(weights[names[path]], path)
        if value.shape != like.shape and "/head/" in path:
            print(f"{path}: {value.shape[-1]} classes there, {classes} here; left at its start")
            initial = flatten_dict(init(), sep="/") if initial is None else initial
            value = initial[path]
        elif value.shape != like.shape:
            raise InputError(
                f"{names[path]} has shape {weights[names[path]].shape}, which does not fit {path} "
                f"{like.shape} of {name}; another width, stem or block count?"
            )
        variables[path] = np.asarray(value, np.float32)
    return unflatten_dict(variables, sep="/")


def read_torch_file(path: str | Path) -> Mapping[str, Any]:
    """The weights in a file: `.safetensors`, or `.pth`, which needs torch.

    Nothing that a file says is executed: pickles that ask for it are refused.

    Raises:
        InputError: the file is missing, of another kind, or would execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"model.init={str(path)!r} is no file; give a .safetensors or .pth file")
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    if path.suffix not in (".pth", ".pt"):
        raise InputError(f"model.init={str(path)!r} must end in .safetensors or .pth")
    try:
        import torch
    except ImportError as error:
        raise InputError(f"reading {path} needs torch (pip install torch)") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path} holds more than weights, and was not read: {error}") from error
    return loaded.get("state_dict", loaded.get("model", loaded))


def _torch_name(path: str, rules: list[tuple[str, str]], dialect: str) -> str:
    if path == "params/cls_token":
        return _CLS_TOKEN[dialect]
    module, _, leaf = path.split("/", 1)[1].rpartition("/")
    for pattern, template in rules:
        if match := re.fullmatch(pattern, module):

            def group(hit: re.Match[str], match: re.Match[str] = match) -> str:
                value = match.group(int(hit[1]) + 1)
                return str(int(value) - 1) if hit[2] else value

            return re.sub(r"\{(\d)(-1)?\}", group, template) + "." + _LEAVES[leaf]
    raise AssertionError(f"no rule for {path}")


def _to_our_layout(value: np.ndarray, path: str) -> np.ndarray:
    if path.endswith("kernel"):
        return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return value


def _to_numpy(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def _shortened(names: list[str]) -> str:
    shown = ", ".join(names[:8]) or "none"
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
