"""Converts PyTorch weights to ours and back, by the rules in each network's file."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gini_jax.config.registry import with_tuples
from gini_jax.errors import InputError, unknown_name
from gini_jax.models.registry import MODELS, create_model

Settings: TypeAlias = tuple[tuple[str, Any], ...]

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_INSIDE = ("state_dict", "model_state_dict", "model", "model_ema", "net", "module", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "encoder.")


def from_torch(
    name: str,
    state_dict: Mapping[str, Any],
    num_classes: int | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """PyTorch weights as variables of `create_model(name, ...)`.

    Dictionaries around the weights (`state_dict`, ...) and prefixes of wrapped or compiled networks
    (`module.`, `_orig_mod.`, ...) are removed, and a printed line says so.

    Args:
        name: the model's name.
        state_dict: NumPy arrays or tensors in the naming of torchvision's or timm's ResNets, of
            Hugging Face's `CvtForImageClassification`, or of the microsoft/CvT checkpoints.
        num_classes: `K`; by default that of the weights. If it differs, or the weights have no
            head, the head keeps its initial value, and a printed line says so.
        **overrides: as in `create_model`; stem, width and blocks are inferred from the shapes.

    Returns:
        `{"params": ..., "batch_stats": ...}` of NumPy arrays, float32.

    Raises:
        InputError: the names or shapes match no known naming (the error lists the missing and the
            unexpected ones), or an override contradicts the shapes.

    Examples:
        >>> model = create_model("resnet18", 10, width=8)
        >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> again = from_torch("resnet18", to_torch("resnet18", variables))
        >>> again["params"]["head"]["dense"]["bias"].shape
        (10,)
    """
    return converted(name, state_dict, num_classes, overrides, print)


def converted(
    name: str,
    state_dict: Mapping[str, Any],
    num_classes: int | None,
    overrides: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """`from_torch`, with the function that is given each line of text."""
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    weights = {key: _to_numpy(value) for key, value in _unwrapped(state_dict, say).items()}
    weights = {key: value for key, value in weights.items() if "num_batches" not in key}
    inferred = MODELS[name].infer(weights)
    for key, value in overrides.items():
        if key in inferred and inferred[key] != (tuple(value) if key.endswith("s") else value):
            raise InputError(
                f"model.{key}={value!r}, but these weights have {key}={inferred[key]!r}; set "
                f"--config.model.{key}={str(inferred[key]).replace(' ', '')}"
            )
    settings = {**inferred, **overrides}
    found = {d: _names_by_dialect(name, d, settings) for d in MODELS[name].dialects}
    dialect = max(found, key=lambda d: len(set(found[d].values()) & set(weights)))
    names = found[dialect]
    head = {path: torch_name for path, torch_name in names.items() if "/head/" in path}
    there = [weights[n] for n in head.values() if n in weights]
    classes = num_classes or (len(there[0]) if there else 1000)
    missing = sorted((set(names.values()) - set(head.values() if not there else ())) - set(weights))
    biases = {n.removesuffix("weight") + "bias" for n in head.values()}  # a cosine head has none
    unexpected = sorted(set(weights) - set(names.values()) - biases)
    if missing or unexpected:
        raise InputError(
            f"these weights are not those of {name} in the naming of {dialect}, the nearest known; "
            f"missing: {_shortened(missing)}; unexpected: {_shortened(unexpected)}"
        )
    return _filled(name, classes, settings, names, weights, say)


def to_torch(name: str, variables: Mapping[str, Any], dialect: str = "") -> dict[str, np.ndarray]:
    """Variables of a network as arrays under PyTorch's names.

    Args:
        name: the model's name.
        variables: `{"params": ..., "batch_stats": ...}`.
        dialect: the naming; by default the network's first: torchvision or Hugging Face.

    Returns:
        Float32 arrays by name, in PyTorch's layout: `load_state_dict` takes them as tensors.

    Raises:
        InputError: the network has no PyTorch naming.

    Examples:
        >>> variables = {"params": {"head": {"dense": {"kernel": np.zeros((8, 10))}}}}
        >>> to_torch("resnet18", variables)["fc.weight"].shape
        (10, 8)
    """
    dialects = MODELS.find(name).dialects
    if not dialects:
        raise InputError(
            f"model {name} has no PyTorch counterpart: its file has no dialects; add them, or use "
            "--mode=export --format=stablehlo"
        )
    rules = dialects[dialect or next(iter(dialects))]
    arrays = {}
    for path, value in flatten_dict(variables, sep="/").items():
        value = np.asarray(value, np.float32)
        if path.endswith("kernel"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        arrays[_torch_name(path, rules)] = np.ascontiguousarray(value)
        if path.endswith("/mean"):
            counter = _torch_name(path, rules).replace("running_mean", "num_batches_tracked")
            arrays[counter] = np.array(0, np.int64)
    return arrays


def _filled(
    name: str,
    classes: int,
    settings: Mapping[str, Any],
    names: Mapping[str, str],
    weights: Mapping[str, np.ndarray],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """A network's variables with PyTorch's values; a head that does not fit is reinitialised."""
    variables: dict[str, Any] = {}
    initial: Mapping[str, Any] | None = None
    for path, like in _shapes(name, classes, _hashable(settings)).items():
        value = _to_our_layout(weights[names[path]], path) if names[path] in weights else None
        if "/head/" in path and (value is None or value.shape != like.shape):
            if initial is None:
                was = "no head" if value is None else f"{value.shape[-1]} classes"
                say(f"the weights have {was}, and the network {classes} classes: its head is new")
            initial = _new_head(name, classes, _hashable(settings)) if initial is None else initial
            value = initial[path]
        elif value is None or value.shape != like.shape:
            shape = weights[names[path]].shape
            raise InputError(
                f"{names[path]} has shape {shape}, but {path} of {name} has shape {like.shape}; "
                "set --config.model to the network that these weights belong to"
            )
        variables[path] = np.asarray(value, np.float32)
    return unflatten_dict(variables, sep="/")


def _unwrapped(state_dict: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """The weights alone; anything around them is removed, and a line says so."""
    weights, done = dict(state_dict), []
    while True:
        inside = [key for key in _INSIDE if isinstance(weights.get(key), Mapping)]
        if not inside:
            break
        weights = dict(weights[inside[0]])
        done.append(f"unwrapped {inside[0]!r}")
    weights = {key: value for key, value in weights.items() if hasattr(value, "shape")}
    while True:
        prefix = next(
            (p for p in _PREFIXES if weights and all(k.startswith(p) for k in weights)), ""
        )
        if not prefix:
            break
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
        done.append(f"removed the prefix {prefix!r}")
    if done:
        say(f"weights: {', '.join(done)}")
    return weights


def _hashable(settings: Mapping[str, Any]) -> Settings:
    return tuple(sorted(with_tuples(dict(settings)).items()))


def _initializer(name: str, num_classes: int, settings: Settings) -> Any:
    model = create_model(name, num_classes, **dict(settings))
    return partial(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@lru_cache(maxsize=8)
def _shapes(name: str, num_classes: int, settings: Settings) -> Mapping[str, Any]:
    """By path, the shapes of a network's variables."""
    found = jax.eval_shape(_initializer(name, num_classes, settings))
    return MappingProxyType(flatten_dict(found, sep="/"))


@lru_cache(maxsize=8)
def _new_head(name: str, num_classes: int, settings: Settings) -> Mapping[str, Any]:
    """By path, the initial values of a network's head."""

    @jax.jit  # which leaves out what the head does not depend on
    def init() -> Any:
        found = flatten_dict(_initializer(name, num_classes, settings)(), sep="/")
        return {path: value for path, value in found.items() if "/head/" in path}

    return MappingProxyType(init())


def _names_by_dialect(name: str, dialect: str, settings: Mapping[str, Any]) -> dict[str, str]:
    paths = _shapes(name, 10, _hashable(settings))
    return {path: _torch_name(path, MODELS[name].dialects[dialect]) for path in paths}


def _torch_name(path: str, rules: Iterable[tuple[str, str]]) -> str:
    module, _, leaf = path.split("/", 1)[1].rpartition("/")
    for pattern, template in rules:
        if match := re.fullmatch(pattern, module or leaf):

            def group(hit: re.Match[str], match: re.Match[str] = match) -> str:
                value = match.group(int(hit[1]) + 1)
                return str(int(value) - 1) if hit[2] else value

            torch_module = re.sub(r"\{(\d)(-1)?\}", group, template)
            return f"{torch_module}.{_LEAVES[leaf]}" if module else torch_module
    raise InputError(f"no rule gives {path} a PyTorch name; add one to the network's dialects")


def _to_our_layout(value: np.ndarray, path: str) -> np.ndarray:
    if path.endswith("kernel"):
        return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return value


def _to_numpy(value: Any) -> np.ndarray:
    """A copy, which does not change when the tensor does."""
    if hasattr(value, "detach"):  # a tensor; NumPy has no bfloat16
        return value.detach().cpu().float().numpy().copy()
    return np.array(value, np.float32)


def _shortened(names: list[str]) -> str:
    shown = ", ".join(names[:8]) or "none"
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
