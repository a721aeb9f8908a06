"""SIGTERM and SIGINT, handled between two steps."""

import itertools
import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_numbers = itertools.count(1)  # per process, like jax's sync point


class Interrupts:
    """A context that only records a first SIGTERM or SIGINT; a second SIGINT stops at once.

    Outside the main thread it records nothing.

    In a distributed run, even one with a single process, jax handles SIGTERM from the start. It
    makes all processes stop after the same call of `status`. SIGINT is passed on to it as SIGTERM.

    Examples:
        >>> with Interrupts() as interrupts:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     interrupts.status()
        143
    """

    def __init__(self) -> None:
        self._signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python handles signals only in the main thread
        own = (signal.SIGINT,) if jax.distributed.is_initialized() else SIGNALS
        for number in own:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if jax.distributed.is_initialized():
                os.kill(os.getpid(), signal.SIGTERM)

    def status(self) -> int:
        """Exit status with which the run should end now, 128 + signal; 0 to continue.

        All processes call this equally often, each time with the next number. When a signal comes,
        jax takes the highest number that any process has passed, and all processes stop when they
        pass the number after it.
        """
        number = self._signal
        if jax.distributed.is_initialized():
            stop = multihost_utils.reached_preemption_sync_point(next(_numbers))
            number = (number or signal.SIGTERM) if stop else 0
        return 128 + number if number else 0
