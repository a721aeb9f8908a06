"""From arrays on the host to batches on the devices; only this file knows the layout there.

There are two ways to feed the training step with the same batches: the whole set on each device, or
a stream from the host.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils
from jaxtyping import Array, Int32
from ml_collections import ConfigDict

from gini_jax.data.sampling import calls_of_epoch, epoch_order, steps_of_epoch
from gini_jax.data.source import Split
from gini_jax.devices import num_devices, order_by_device, replicate, sharding_over_devices

FEEDS = ("auto", "device", "stream")
_BUFFER = 2  # number of calls whose batches wait on the host, and likewise on the devices


def choose_feed(name: str, train: Split, devices: Sequence[jax.Device] | None = None) -> str:
    """`device` or `stream`: as `config.dataset.feed` says, or for `auto` by what fits.

    A set goes to the devices if, in all processes, it takes at most half of the free memory of each
    device and of the host, which reads the whole set.

    Args:
        name: `auto`, `device` or `stream`.
        train: the training split.
        devices: to train on; all by default.

    Examples:
        >>> choose_feed("auto", Split(np.zeros((9, 8, 8, 3), np.uint8), np.zeros(9, np.int32)))
        'device'
    """
    if name != "auto":
        return name
    local = jax.local_devices() if devices is None else list(devices)
    free = min(psutil.virtual_memory().available, *map(_free_bytes, local))
    size = np.dtype(train.images.dtype).itemsize * math.prod(train.images.shape)
    fits = 2 * size <= free
    return "device" if multihost_utils.process_allgather(np.array(fits)).all() else "stream"


def _free_bytes(device: jax.Device) -> int:
    stats = device.memory_stats()
    if stats is None:  # a CPU: simulated devices share its memory
        return psutil.virtual_memory().available // len(jax.local_devices())
    return stats["bytes_limit"] - stats["bytes_in_use"]


# ---------------------------------------------------------------------------- layout on a device


def row_shape(image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """How an image `[H, W, 3]` lies on a device: `[H, W * 3]`, or `[H * W * 3]`; features: flat.

    The first is used if rows fill the tiles of a TPU's memory, 32 by 128 bytes. In any other layout
    a TPU would copy the whole set in every step to take one batch out of it.

    Examples:
        >>> row_shape((256, 256, 3)), row_shape((32, 32, 3))
        ((256, 768), (3072,))
    """
    if len(image_shape) != 3:
        return (math.prod(image_shape),)
    height, width, channels = image_shape
    tiled = height % 32 == 0 and width * channels % 128 == 0
    return (height, width * channels) if tiled else (height * width * channels,)


def resident(split: Split) -> Split:
    """A split as it lies on the devices, one row per image; see `row_shape`."""
    n, *image_shape = split.images.shape
    return Split(split.images.reshape(n, *row_shape(image_shape)), split.labels)


def resident_batch(
    data: Split,
    order: Int32[Array, "steps n"],
    step: Int32[Array, ""],
    image_shape: tuple[int, ...],
) -> Split:
    """A device's part of a step's batch, out of the training split that lies on it.

    Args:
        data: the whole training split; see `resident`.
        order: this device's examples in each step of the epoch.
        step: the run's step.
        image_shape: the shape of a stored image, `(H, W, 3)`.
    """
    index = order[step % order.shape[0]]
    return as_images(Split(data.images[index], data.labels[index]), image_shape)


def as_images(batch: Split, image_shape: tuple[int, ...]) -> Split:
    """Converts a batch of rows to a batch of images `[n, H, W, 3]`; see `row_shape`."""
    return Split(batch.images.reshape(-1, *image_shape), batch.labels)


def feed_shapes(
    train: Split, feed: str, batch_size: int, devices: int
) -> tuple[Split, Any] | tuple[Split]:
    """Shapes of the arguments, besides the state, that a feed gives to a call of one step.

    Args:
        train: the training split, or its shapes.
        feed: `device` or `stream`.
        batch_size: size of the global batch.
        devices: all devices.
    """
    num_examples, *image_shape = train.images.shape
    rows = row_shape(tuple(image_shape))
    if feed == "device":
        order = (devices, steps_of_epoch(num_examples, batch_size), batch_size // devices)
        images = jax.ShapeDtypeStruct((num_examples, *rows), train.images.dtype)
        labels = jax.ShapeDtypeStruct((num_examples,), np.int32)
        return Split(images, labels), jax.ShapeDtypeStruct(order, np.int32)
    batch = (devices, 1, batch_size // devices)
    images = jax.ShapeDtypeStruct((*batch, *rows), train.images.dtype)
    return (Split(images, jax.ShapeDtypeStruct(batch, np.int32)),)


# ---------------------------------------------------------------------------- feeds


class DeviceFeed:
    """The whole training split on each device, as uint8; a step takes its batch out of it.

    Args:
        train: the training split.
        config: the run's settings.
        devices: to train on; all by default.
    """

    def __init__(
        self, train: Split, config: ConfigDict, devices: Sequence[jax.Device] | None = None
    ):
        whole = resident(Split(*map(np.asarray, train)))
        self._steps = steps_of_epoch(len(whole.labels), config.batch_size)
        self._data = replicate(whole, devices, donated=False)
        self._order = lru_cache(maxsize=1)(
            lambda epoch: order_by_device(
                epoch_order(config, epoch, whole.labels), num_devices(devices)
            )
        )

    def arguments(self, step: int, count: int) -> tuple[Any, ...]:
        """The arguments, besides the state, of a call of `count` steps starting at `step`."""
        del count
        return self._data, self._order(step // self._steps)


class StreamFeed:
    """Batches from the host, read ahead by Grain; each process reads only its part of each batch.

    Args:
        train: the training split, mapped from a file or in memory.
        config: the run's settings.
        devices: to train on; all by default.
    """

    def __init__(
        self, train: Split, config: ConfigDict, devices: Sequence[jax.Device] | None = None
    ):
        self._train, self._config, self._devices = train, config, devices
        self._next: tuple[int, int] | None = None  # step and count of the next call
        self._batches: Any = None

    def arguments(self, step: int, count: int) -> tuple[Any, ...]:
        """The arguments, besides the state, of a call of `count` steps starting at `step`."""
        if self._next != (step, count):
            import grain  # as long to import as a small run's first step takes
            from grain.experimental import device_put

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
            raise ValueError(f"got (step, count) = {(step, count)}; the next call is {self._next}")
        self._next = next(self._calls, None)
        return (next(self._batches),)


class HostBatches:
    """The batches of a run's calls, reduced to this process's part: a source for Grain.

    Args:
        train: the training split.
        config: the run's settings.
        devices: all devices, those of other processes included.
        start: the first step.

    Attributes:
        calls: the first step of each call and its number of steps; no call crosses an epoch's end.

    Examples:
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

    def __init__(self, train: Split, config: ConfigDict, devices: int, start: int):
        self._train, self._config, self._devices = train, config, devices
        self._steps = steps_of_epoch(len(train.labels), config.batch_size)
        self._order = lru_cache(maxsize=2)(lambda epoch: epoch_order(config, epoch, train.labels))
        self.calls: list[tuple[int, int]] = []
        while start < config.num_epochs * self._steps:
            self.calls += calls_of_epoch(start, self._steps, config.steps_per_call)
            start = sum(self.calls[-1])

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
