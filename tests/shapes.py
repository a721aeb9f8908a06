"""The shapes and types of arrays in annotations hold while the tests run.

jaxtyping's import hook has every function checked by `checked`, in the tests alone. It checks
arrays, and leaves other types to mypy: tests give wrong ones, to see what the package says of them.
"""

from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def checked(function: Any) -> Any:
    """A function, or a dataclass, whose arguments and results are checked when it is called."""
    hints = getattr(function, "__annotations__", {})
    function.__annotations__ = {name: hint for name, hint in hints.items() if of_arrays(hint)}
    return beartype(function)


def of_arrays(hint: Any) -> bool:
    """Whether an annotation is one of jaxtyping's, or holds one."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(of_arrays, get_args(hint)))
