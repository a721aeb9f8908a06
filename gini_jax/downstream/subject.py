"""What a bench measures: a trained network, its data, and its outputs for them."""

import dataclasses
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from gini_jax.data import Dataset, Split, load_dataset
from gini_jax.data.augment import centre_crop, statistics
from gini_jax.data.protocols import HELD_OUT
from gini_jax.data.source import LazySubset
from gini_jax.devices import cpu_options
from gini_jax.evals import Extractor, SplitOutputs, subsample
from gini_jax.evals.extract import forward_pass
from gini_jax.trained import Trained, load


class NetworkFunction(NamedTuple):
    """A network as a function of its variables and of images in `[0, 1]`.

    Networks with the same settings compare equal, so they share one compiled function.

    Attributes:
        model: the flax.linen module.
        mean: subtracted from the images.
        std: what they are then divided by.
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, variables: Any, images: Float[Array, "N h w 3"]) -> Float[Array, "N K"]:
        """Logits."""
        return forward_pass(self.model, self, variables, images)[0]


@cache
def classes_of(network: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Int[Array, " N"]]:
    """A compiled function of variables and images to the predicted classes."""
    return jax.jit(
        lambda variables, images: network(variables, images).argmax(axis=1),
        compiler_options=cpu_options(),
    )


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained network and its data set.

    Attributes:
        trained: the network.
        dataset: the splits.
        outliers: the name of another data set, for the bench of that name; "" if none.
    """

    trained: Trained
    dataset: Dataset
    outliers: str = ""

    @property
    def config(self) -> ConfigDict:
        """The run's settings."""
        return self.trained.config

    @property
    def num_classes(self) -> int:
        """`K`."""
        return self.dataset.num_classes

    @cached_property
    def train(self) -> SplitOutputs:
        """Outputs for the labelled training images, for 10,000 at most."""
        split = self.dataset.splits["train"]
        labelled = np.flatnonzero(split.labels >= 0)
        rows = labelled[subsample(len(labelled))]
        return self.outputs(Split(LazySubset(split.images, rows), split.labels[rows]))

    @cached_property
    def test(self) -> SplitOutputs:
        """Outputs for the test split."""
        return self.outputs(self.dataset.splits["test"])

    @cached_property
    def held_out(self) -> SplitOutputs | None:
        """Outputs for test images of the classes that training did not see, if there are any."""
        split = self.dataset.splits.get(HELD_OUT)
        return None if split is None else self.outputs(split)

    def outputs(self, split: Split) -> SplitOutputs:
        """The network's outputs for other images."""
        return self._extract(self.trained.variables, split)

    def test_images(self, most: int) -> tuple[Float[np.ndarray, "N h w 3"], Int[np.ndarray, " N"]]:
        """Test images as the network is shown them, in `[0, 1]`, with their classes.

        Args:
            most: the largest number of images; from more, this many are drawn with a fixed seed.
        """
        split = self.dataset.splits["test"]
        rows = subsample(len(split.labels), most)
        return self.seen(split.images[rows]), np.asarray(split.labels)[rows]

    def seen(self, images: UInt8[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N h w 3"]:
        """Stored images as the network is shown them, in `[0, 1]`."""
        return np.asarray(centre_crop(jnp.asarray(images), self.trained.image_size))

    def accuracy(
        self, images: Float[np.ndarray, "N h w 3"], labels: Int[np.ndarray, " N"]
    ) -> float:
        """Accuracy on images in `[0, 1]`."""
        predicted, size, right = classes_of(self.network), 256, 0
        for start in range(0, len(labels), size):
            found = predicted(self.trained.variables, images[start : start + size])
            right += int((np.asarray(found) == labels[start : start + size]).sum())
        return right / len(labels)

    @property
    def network(self) -> "NetworkFunction":
        """The network as a function of variables and images."""
        return NetworkFunction(self.trained.model, *statistics(self.config.dataset))

    @cached_property
    def _extract(self) -> Extractor:
        # On one device, because `load` creates the network for one device.
        trained = self.trained
        one = jax.local_devices()[:1]
        return Extractor(trained.model, trained.config, trained.image_size, one)


def subject_of(folder: Path, outliers: str = "", data_dir: str = "") -> Subject:
    """The network of a finished run, from its best checkpoint, and the run's data.

    Args:
        folder: of the run.
        outliers: the name of another data set, or "".
        data_dir: where the data are, if they have moved since the run.

    Raises:
        InputError: the data are missing.
        RunError: the checkpoint cannot be read.
    """
    trained = load(folder)
    if data_dir:
        trained.config.dataset.data_dir = data_dir
    return Subject(trained, load_dataset(trained.config.dataset), outliers)
