"""A run's compiled step and its feed: advances a state by some steps."""

from collections.abc import Sequence
from typing import Any

import jax

from gini_jax.data.loader import DeviceFeed, StreamFeed, choose_feed
from gini_jax.data.source import Dataset
from gini_jax.devices import program
from gini_jax.training.state import Experiment, TrainState
from gini_jax.training.step import create_step


class Stepper:
    """Advances a state, which is on the devices, by some steps.

    Args:
        experiment: the fixed parts of the run.
        dataset: the data; the first call puts its training split on the devices or streams it.
        devices: to train on; all by default.

    Attributes:
        feed_name: `device` or `stream`.
    """

    def __init__(
        self,
        experiment: Experiment,
        dataset: Dataset,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.experiment, self.dataset, self.devices = experiment, dataset, devices
        train = dataset.splits["train"]
        self.feed_name = choose_feed(experiment.config.dataset.feed, train, devices)
        self._feed: DeviceFeed | StreamFeed | None = None
        self._compiled: dict[int, Any] = {}  # by number of steps per call

    def __call__(
        self, state: TrainState, step: int, count: int
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Advances the state at `step` by `count` steps, which must not cross the epoch's end.

        Returns:
            The next state, and the steps' metrics, `[count]` each.
        """
        if count not in self._compiled:
            key = "step", count, self.feed_name, self.devices and tuple(self.devices)
            self._compiled[count] = program(
                key, lambda: create_step(self.experiment, self.devices, count, self.feed_name)
            )
        if self._feed is None:
            feed = DeviceFeed if self.feed_name == "device" else StreamFeed
            self._feed = feed(self.dataset.splits["train"], self.experiment.config, self.devices)
        return self._compiled[count](state, *self._feed.arguments(step, count))
