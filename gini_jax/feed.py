"""Two ways to feed the training step, the same batches: a set on each device, or a stream."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import grain
import jax
import numpy as np
import psutil
from grain.experimental import device_put
from jax.experimental import multihost_utils

from gini_jax.data import Split, epoch_order
from gini_jax.parallel import num_devices, order_by_device, replicate, sharding_over_devices
from gini_jax.step import resident, row_shape

FEEDS = ("auto", "device", "stream")
_BUFFER = 2  # calls whose batches wait on the host, and as many on the devices


def choose_feed(name: str, train: Split, devices: Sequence[jax.Device] | None = None) -> str:
    """`device` or `stream`: what `config.dataset.feed` says, or for `auto` what fits.

    A set goes to the devices if it takes at most half of what is free on each, and of what is free
    on the host, which reads it whole; in all processes.

    Args:
        name: `auto`, `device` or `stream`.
        train: the training split.
        devices: to train on; all by default.

    Example:
        >>> choose_feed("auto", Split(np.zeros((9, 8, 8, 3), np.uint8), np.zeros(9, np.int32)))
        'device'
    """
    if name != "auto":
        return name
    local = jax.local_devices() if devices is None else list(devices)
    free = min(psutil.virtual_memory().available, *map(_free_bytes, local))
    fits = 2 * np.prod(train.images.shape, dtype=np.int64) <= free
    return "device" if multihost_utils.process_allgather(np.array(fits)).all() else "stream"


def _free_bytes(device: jax.Device) -> int:
    stats = device.memory_stats()
    if stats is None:  # a CPU: simulated devices share its memory
        return psutil.virtual_memory().available // len(jax.local_devices())
    return stats["bytes_limit"] - stats["bytes_in_use"]


class DeviceFeed:
    """The whole training split on each device, as uint8; a step takes its batch out of it.

    Args:
        train: the training split.
        config: the run's settings.
        devices: to train on; all by default.
    """

    def __init__(self, train: Split, config: Any, devices: Sequence[jax.Device] | None = None):
        num_examples, batch_size = len(train.labels), config.batch_size
        self._steps = num_examples // batch_size
        whole = resident(Split(*map(np.asarray, train)))
        self._data = replicate(whole, devices, donated=False)
        self._order = lru_cache(maxsize=1)(
            lambda epoch: order_by_device(
                epoch_order(config.seed, epoch, num_examples, batch_size), num_devices(devices)
            )
        )

    def arguments(self, step: int, count: int) -> tuple[Any, ...]:
        """What a call of `count` steps from `step` on takes beside the state."""
        del count
        return self._data, self._order(step // self._steps)


class StreamFeed:
    """Batches from the host, read ahead by Grain; each process reads its own part of each.

    Args:
        train: the training split, mapped from a file or in memory.
        config: the run's settings.
        devices: to train on; all by default.
    """

    def __init__(self, train: Split, config: Any, devices: Sequence[jax.Device] | None = None):
        self._train, self._config, self._devices = train, config, devices
        self._next: tuple[int, int] | None = None  # step and count of the next call
        self._batches: Any = None

    def arguments(self, step: int, count: int) -> tuple[Any, ...]:
        """What a call of `count` steps from `step` on takes beside the state."""
        if self._next != (step, count):
            source = HostBatches(self._train, self._config, num_devices(self._devices), step)
            threads = grain.ReadOptions(num_threads=_BUFFER, prefetch_buffer_size=_BUFFER)
            batches = device_put(
                grain.MapDataset.source(source).to_iter_dataset(threads),
                sharding_over_devices(self._devices),
                cpu_buffer_size=_BUFFER,
                device_buffer_size=_BUFFER,
            )
            self._calls, self._batches = iter(source.calls), iter(batches)
            self._next = next(self._calls)
        if self._next != (step, count):
            raise ValueError(f"a call of {count} steps from {step}; the next is {self._next}")
        self._next = next(self._calls, None)
        return (next(self._batches),)


class HostBatches:
    """The batches of a run's calls, this process's part of each: a source for Grain.

    Args:
        train: the training split.
        config: the run's settings.
        devices: all devices, those of other processes included.
        start: the first step.

    Attributes:
        calls: the first step of each call, and how many it has; none goes beyond an epoch.

    Example:
        >>> from gini_jax.config import default_config
        >>> config = default_config()
        >>> config.batch_size, config.num_epochs, config.steps_per_call = 2, 2, 2
        >>> train = Split(np.zeros((7, 8, 8, 3), np.uint8), np.arange(7))
        >>> batches = HostBatches(train, config, devices=1, start=1)
        >>> batches.calls
        [(1, 2), (3, 2), (5, 1)]
        >>> batches[0].labels.shape  # [local devices, steps, batch]
        (1, 2, 2)
    """

    def __init__(self, train: Split, config: Any, devices: int, start: int):
        self._train, self._config, self._devices = train, config, devices
        self._steps = len(train.labels) // config.batch_size
        self._order = lru_cache(maxsize=2)(
            lambda epoch: epoch_order(config.seed, epoch, len(train.labels), config.batch_size)
        )
        self.calls = []
        while start < config.num_epochs * self._steps:
            count = min(config.steps_per_call, self._steps - start % self._steps)
            self.calls.append((start, count))
            start += count

    def __len__(self) -> int:
        return len(self.calls)

    def __getitem__(self, index: int) -> Split:
        step, count = self.calls[index]
        epoch, first = divmod(step, self._steps)
        order = self._order(epoch)[first : first + count]
        examples = order_by_device(order, self._devices)
        images = self._train.images[examples]
        rows = row_shape(self._train.images.shape[1:])
        return Split(images.reshape(*examples.shape, *rows), self._train.labels[examples])
