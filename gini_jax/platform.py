"""The platform that a program is traced for, which need not be that of this machine."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


@contextlib.contextmanager
def tracing_for(platform: str | None) -> Iterator[None]:
    """A context in which what is traced is for a platform, such as `tpu`; None: jax's default.

    What is traced for CPUs runs on other platforms too, in their own way.
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def traces_for_cpus() -> bool:
    """Whether what is traced now is for CPUs.

    Examples:
        >>> with tracing_for("cpu"):
        ...     traces_for_cpus()
        True
    """
    return (_platform.get() or jax.default_backend()) == "cpu"
