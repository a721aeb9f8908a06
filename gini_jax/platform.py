"""The platform that a program is traced for, which need not be that of this machine."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


@contextlib.contextmanager
def tracing_for(platform: str | None) -> Iterator[None]:
    """A context in which code is traced for a platform, such as `tpu`; None: jax's default.

    Code that is traced for CPUs also runs on other platforms, which use their own methods.
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def traces_for_cpus() -> bool:
    """Whether code is now being traced for CPUs.

    Examples:
        >>> with tracing_for("cpu"):
        ...     traces_for_cpus()
        True
    """
    return (_platform.get() or jax.default_backend()) == "cpu"
