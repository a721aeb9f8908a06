"""The loop over epochs and steps, and its callbacks."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gini_jax.data.sampling import calls_of_epoch
from gini_jax.training.progress import Progress
from gini_jax.training.state import TrainState
from gini_jax.training.stepper import Stepper


class Callback:
    """Hooks into a run. The loop calls each method on all callbacks, in their order."""

    def before_call(self, run: "TrainLoop") -> None:
        """Runs before a call of the compiled step, when `run.step` steps are done."""

    def on_step(self, run: "TrainLoop", metrics: dict[str, float]) -> None:
        """Runs when the metrics of a step have arrived; `run.progress` already includes them."""

    def after_call(self, run: "TrainLoop") -> None:
        """Runs after each call of the compiled step, except the last of an epoch."""

    def after_epoch(self, run: "TrainLoop") -> None:
        """Runs after each epoch; `run.line` holds its metrics."""

    def close(self) -> None:
        """Runs at the end of the run, however it ends."""


class TrainLoop:
    """A run while it trains.

    Attributes:
        stepper: its compiled step and its feed.
        experiment: its fixed parts.
        state: on the devices, after `step` steps.
        progress: the progress, from the metrics that have arrived.
        line: the metrics of the latest epoch.
    """

    def __init__(
        self,
        stepper: Stepper,
        state: TrainState,
        progress: Progress,
        step: int,
        callbacks: Sequence[Callback],
    ):
        self.stepper, self.experiment, self.progress = stepper, stepper.experiment, progress
        self.state, self.step = state, step
        self.line: dict[str, Any] = {}
        self._callbacks = callbacks
        self._pending: dict[str, jax.Array] = {}
        self._start = time.perf_counter()

    @property
    def steps_seen(self) -> int:
        """The number of steps whose metrics have arrived."""
        return self.progress.images // self.experiment.config.batch_size

    def train(self) -> None:
        """Trains to the last epoch, or until it stops early."""
        config, steps = self.experiment.config, self.experiment.steps_per_epoch
        for epoch in range(self.progress.epochs, config.num_epochs):
            self._start = time.perf_counter()
            for step, count in calls_of_epoch(self.step, steps, config.steps_per_call):
                for callback in self._callbacks:
                    callback.before_call(self)
                self._call(step, count)
                if self.step == (epoch + 1) * steps:
                    break
                for callback in self._callbacks:
                    callback.after_call(self)
            self.settle()
            self.line = self.progress.end_epoch(self.experiment)
            for callback in self._callbacks:
                callback.after_epoch(self)
            if self.progress.is_last(config):
                break

    def settle(self) -> None:
        """Waits for the steps in flight, and records their metrics and training time."""
        self._fetch()
        self._start = self.progress.add_time(self._start)

    def _call(self, step: int, count: int) -> None:
        self.state, metrics = self.stepper(self.state, step, count)
        self._fetch()  # the previous call's metrics, while this one runs
        self._pending, self.step = metrics, step + count

    def _fetch(self) -> None:
        """Records the metrics of the latest call, unless they already are recorded."""
        values = {name: np.asarray(x) for name, x in jax.device_get(self._pending).items()}
        self._pending = {}
        for i in range(len(values.get("loss", ()))):
            one = {name: float(value[i]) for name, value in values.items()}
            self.progress.add_step(one, self.experiment.config.batch_size)
            for callback in self._callbacks:
                callback.on_step(self, one)
