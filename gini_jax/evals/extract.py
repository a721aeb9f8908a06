"""A network's outputs for every example of a split: the input of all evaluations."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int, Shaped
from ml_collections import ConfigDict

from gini_jax.data.augment import centre_crop, standardize
from gini_jax.data.source import Split
from gini_jax.devices import AXIS, map_over_devices, num_devices, program, replicate, shard


class SplitOutputs(NamedTuple):
    """A network's outputs for a split, on the host.

    Attributes:
        logits: before the softmax.
        pooled: the features that the classifier sees.
        layers: for each layer, each feature's mean absolute activation over space or tokens.
        labels: the classes.
    """

    logits: Float[np.ndarray, "N K"]
    pooled: Float[np.ndarray, "N C"]
    layers: dict[str, Float[np.ndarray, "N C"]]
    labels: Int[np.ndarray, " N"]


def forward_pass(
    model: nn.Module, statistics: Any, variables: Any, images: Float[jax.Array, "N ..."]
) -> tuple[Float[jax.Array, "N K"], dict[str, Float[jax.Array, "N ..."]]]:
    """Logits, and features by layer, of a network in evaluation mode.

    Args:
        model: the network.
        statistics: has `mean` and `std`, as `config.dataset`.
        variables: the network's variables.
        images: in `[0, 1]`.
    """
    found: Any = model.apply(variables, standardize(images, statistics), train=False)
    return found  # type: ignore[no-any-return]


class Extractor:
    """Runs a network over whole splits; compiled once for all of them.

    Args:
        model: the network.
        config: the run's settings: `loss.layers`, whose activations are taken; `eval_batch_size`,
            rounded up to a multiple of the devices; `dataset.mean` and `std`.
        image_size: height and width that the network sees.
        devices: to divide a batch over; all by default.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ConfigDict,
        image_size: int,
        devices: Sequence[jax.Device] | None = None,
    ):
        count = num_devices(devices)
        self.batch_size = -(-config.eval_batch_size // count) * count
        self.devices, layers = devices, tuple(config.loss.layers)

        def step(variables: Any, images: jax.Array) -> Any:
            seen = centre_crop(images, image_size)
            logits, features = forward_pass(model, config.dataset, variables, seen)
            activations = {layer: _mean_absolute(features[layer]) for layer in layers}
            outputs = logits, features["pooled"].astype(jnp.float32), activations
            return lax.all_gather(outputs, AXIS, tiled=True)

        self._step = program(
            ("outputs", model, image_size, layers, devices and tuple(devices)),
            lambda: map_over_devices(step, devices, in_axes=(None, 0), donate=False),
        )

    def __call__(self, variables: Any, split: Split) -> SplitOutputs:
        """The outputs for a split, in the order of its examples.

        Args:
            variables: the model's variables, on the devices or on the host.
            split: the examples.
        """
        variables = replicate(jax.device_get(variables), self.devices, donated=False)
        parts, pending = [], None
        for images, kept in padded_batches(split, self.batch_size, num_devices(self.devices)):
            outputs = self._step(variables, images), kept
            if pending is not None:  # fetched while the next batch is computed
                parts.append(_fetched(*pending))
            pending = outputs
        if pending is not None:
            parts.append(_fetched(*pending))
        logits, pooled, layers = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        return SplitOutputs(logits, pooled, layers, np.asarray(split.labels))


def _mean_absolute(features: jax.Array) -> jax.Array:
    """`[N, ..., C]` to `[N, C]`, float32."""
    return jnp.abs(features.astype(jnp.float32)).mean(axis=tuple(range(1, features.ndim - 1)))


def _fetched(outputs: Any, kept: int) -> Any:
    return jax.tree.map(lambda x: np.asarray(x)[:kept], jax.device_get(outputs))


def padded_batches(
    split: Split, batch_size: int, devices: int = 1
) -> Iterator[tuple[Shaped[np.ndarray, "local n ..."], int]]:
    """Batches of a split's images, in order; the last is padded with copies of its first image.

    Args:
        split: the examples; only this process's part is read.
        batch_size: size of the global batch.
        devices: all devices, those of other processes included.

    Yields:
        Images `[local devices, batch_size / devices, H, W, 3]`, and how many images of the global
        batch are not copies.

    Examples:
        >>> split = Split(np.zeros((3, 8, 8, 3), np.uint8), np.zeros(3, np.int32))
        >>> [(images.shape, kept) for images, kept in padded_batches(split, 2)]
        [((1, 2, 8, 8, 3), 2), ((1, 2, 8, 8, 3), 1)]
    """
    for start in range(0, len(split.labels), batch_size):
        stop = min(start + batch_size, len(split.labels))
        index = np.full(batch_size, start)
        index[: stop - start] = np.arange(start, stop)
        yield split.images[shard(index, devices)], stop - start
