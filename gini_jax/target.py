"""The platform that a program is traced for, which need not be that of this machine."""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import jax

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


@contextlib.contextmanager
def tracing_for(devices: Sequence[jax.Device] | None) -> Iterator[None]:
    """A context in which what is traced is for some devices; None: for jax's default ones."""
    token = _platform.set(devices[0].platform if devices else None)
    try:
        yield
    finally:
        _platform.reset(token)


def traces_for_cpus() -> bool:
    """Whether what is traced now is for CPUs.

    Examples:
        >>> with tracing_for(jax.devices("cpu")):
        ...     traces_for_cpus()
        True
    """
    return (_platform.get() or jax.default_backend()) == "cpu"
