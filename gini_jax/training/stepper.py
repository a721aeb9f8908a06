"""A run's compiled step and its feed: takes a state some steps on."""

from collections.abc import Sequence
from typing import Any

import jax

from gini_jax.data.loader import DeviceFeed, StreamFeed, choose_feed
from gini_jax.data.source import Dataset
from gini_jax.training.step import Experiment, TrainState, create_step


class Stepper:
    """Takes a state, which is on the devices, some steps on.

    Args:
        experiment: what is fixed in the run.
        dataset: the data; its training split is put on the devices, or streamed, at the first call.
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
        self._compiled: dict[int, Any] = {}  # by steps in a call

    def __call__(
        self, state: TrainState, step: int, count: int
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Takes the state, at `step`, `count` steps on, none of them beyond the epoch.

        Returns:
            The next state, and the steps' metrics, `[count]` each.
        """
        if count not in self._compiled:
            self._compiled[count] = create_step(
                self.experiment, self.devices, count, self.feed_name
            )
        if self._feed is None:
            feed = DeviceFeed if self.feed_name == "device" else StreamFeed
            self._feed = feed(self.dataset.splits["train"], self.experiment.config, self.devices)
        return self._compiled[count](state, *self._feed.arguments(step, count))
