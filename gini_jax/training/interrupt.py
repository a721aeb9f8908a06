"""SIGTERM and SIGINT, handled between two steps."""

import os
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """A context in which a first SIGTERM or SIGINT is only noted; a second SIGINT stops at once.

    In a distributed run, also of one process, jax handles SIGTERM from its start on, and makes all
    processes stop after the same call of `status`; SIGINT is passed on to jax as SIGTERM.

    Examples:
        >>> with Interrupts() as interrupts:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     interrupts.status()
        143
    """

    def __init__(self) -> None:
        self._signal = self._asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
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

        All processes call it equally often: jax has them stop in the call after the one in which
        the last of them was when the signal came, and misses that if numbers are left out.
        """
        number = self._signal
        if jax.distributed.is_initialized():
            self._asked += 1
            stop = multihost_utils.reached_preemption_sync_point(self._asked)
            number = (number or signal.SIGTERM) if stop else 0
        return 128 + number if number else 0
