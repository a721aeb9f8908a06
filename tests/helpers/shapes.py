"""The shapes and types of arrays in annotations hold while the tests run.

jaxtyping's import hook has every function checked by `checked`, in the tests alone. It checks
arrays, and leaves other types to mypy: tests give wrong ones, to see what the package says of them.
Where a jax array is expected, NumPy's are welcome, as they are to jax.
"""

import collections.abc
from functools import reduce
from operator import or_
from types import UnionType
from typing import Any, Union, get_args, get_origin

import jax
import jaxtyping
import numpy as np
from beartype import beartype


def checked(function: Any) -> Any:
    """A function, or a dataclass, whose arguments and results are checked when it is called."""
    hints = getattr(function, "__annotations__", {})
    function.__annotations__ = {
        name: with_numpy(hint) for name, hint in hints.items() if of_arrays(hint)
    }
    return beartype(function)


def of_arrays(hint: Any) -> bool:
    """Whether an annotation is one of jaxtyping's, or holds one."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(of_arrays, get_args(hint)))


def with_numpy(hint: Any) -> Any:
    """An annotation in which NumPy's arrays do as well as jax's."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        if hint.array_type is not jax.Array:
            return hint
        kind = getattr(jaxtyping, hint.__name__.partition("[")[0])
        return hint | kind[np.ndarray, hint.dim_str]
    origin, arguments = get_origin(hint), get_args(hint)
    if not arguments or origin is collections.abc.Callable:
        return hint
    inside = tuple(map(with_numpy, arguments))
    if origin in (Union, UnionType):
        return reduce(or_, inside)
    return origin[inside]
