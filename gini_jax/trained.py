"""A trained network, ready for use, without its data set."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

import gini_jax.config.defaults  # noqa: F401  # fills the table of settings
from gini_jax.data.augment import centre_crop
from gini_jax.data.images import as_stored, decoded_ahead
from gini_jax.devices import cpu_options
from gini_jax.errors import InputError, unknown_name
from gini_jax.evals.extract import forward_pass
from gini_jax.models.layers import linear_head
from gini_jax.storage import read_json, run_path
from gini_jax.training.checkpoints import Checkpoints
from gini_jax.training.experiment import create_model_of
from gini_jax.training.state import feature_shapes
from gini_jax.training.workdir import saved_config


class Prediction(NamedTuple):
    """A network's predictions for images.

    Attributes:
        probabilities: of each class.
        names: the most probable class of each image.
    """

    probabilities: Float[np.ndarray, "N K"]
    names: list[str]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        model: the flax.linen module.
        variables: its parameters and batch statistics, on the host.
        config: the run's settings.
        class_names: of the `K` classes.
        image_size: height and width that the network sees.
        step: of the checkpoint.
    """

    model: nn.Module
    variables: dict[str, Any]
    config: ConfigDict
    class_names: tuple[str, ...]
    image_size: int
    step: int

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the fields, without the compiled forward pass."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __repr__(self) -> str:
        """The network in one line, without its arrays."""
        name = f"{self.config.name}:{self.config.objective}, seed {self.config.seed}"
        return (
            f"Trained({name}, step {self.step}: {type(self.model).__name__}, "
            f"{len(self.class_names)} classes, images of {self.image_size}x{self.image_size})"
        )

    def predict(self, images: Any, batch_size: int = 256) -> Prediction:
        """Probabilities and names of the classes.

        Memory holds one batch of images at a time, whatever their number.

        Args:
            images: `[N, H, W, 3]` uint8; or any iterable of images of any size: paths, images that
                Pillow opened, or arrays of NumPy, jax or PyTorch, channels last; or one path.
            batch_size: images at a time.

        Raises:
            InputError: an image cannot be read, or the array has another shape or type.
        """
        logits = np.concatenate([self._logits(x) for x in self._batches(images, batch_size)])
        probabilities = np.asarray(jax.nn.softmax(logits))
        return Prediction(probabilities, [self.class_names[k] for k in logits.argmax(axis=1)])

    def features(
        self, images: Any, batch_size: int = 256, layers: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """Features by layer, `[N, ..., C]`.

        Args:
            images: as in `predict`.
            batch_size: images at a time.
            layers: those to return; all by default. Only their features are kept in memory.

        Raises:
            InputError: as in `predict`, or a layer is unknown.
        """
        known = feature_shapes(self.model, self.image_size)
        for layer in layers:
            if layer not in known:
                raise unknown_name("layer", layer, known)
        wanted = tuple(layers) or tuple(known)
        parts = [self._features(x, wanted) for x in self._batches(images, batch_size)]
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    @property
    def head(self) -> Float[np.ndarray, "C K"] | None:
        """The weights of a linear last layer; None if there is no `head/dense` with a bias."""
        return linear_head(self.variables)

    def pixels(self, image: Any) -> UInt8[np.ndarray, "H W 3"]:
        """An image as the training stored it.

        Raises:
            InputError: it cannot be read.
        """
        return as_stored(image, self.config.dataset.image_size, self.image_size)

    def probabilities(self, pixels: UInt8[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N K"]:
        """Probabilities of the classes for images as `pixels` gives them, all in one batch."""
        return np.asarray(jax.nn.softmax(self._logits(pixels)))

    def _logits(self, pixels: np.ndarray) -> Float[np.ndarray, "N K"]:
        return np.asarray(self._forward(self.variables, pixels, ())[0])

    def _features(self, pixels: np.ndarray, layers: tuple[str, ...]) -> dict[str, np.ndarray]:
        return jax.device_get(self._forward(self.variables, pixels, layers)[1])

    @cached_property
    def _forward(self) -> Any:
        @partial(jax.jit, static_argnums=2, compiler_options=cpu_options())
        def compiled(variables: Any, images: Array, layers: tuple[str, ...]) -> Any:
            seen = centre_crop(images, self.image_size)
            logits, features = forward_pass(self.model, self.config.dataset, variables, seen)
            return logits, {layer: features[layer] for layer in layers}

        return compiled

    def _batches(self, images: Any, batch_size: int) -> Iterator[np.ndarray]:
        """Batches of stored images; the files of the next one are decoded while one is computed."""
        count = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for batch in decoded_ahead(_each_image(images), self.pixels, batch_size, pool):
                count += len(batch)
                yield np.stack(batch)
        if not count:
            raise InputError("images is empty; give at least one image or path")


def _each_image(images: Any) -> Iterable[Any]:
    """The images of an array, a sequence, another iterable, or of one image alone."""
    if isinstance(images, (str, bytes, Path, Image.Image)):
        return [images]
    if not hasattr(images, "shape"):
        return images
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype != np.uint8:
        raise InputError(
            f"images have shape {images.shape} and type {images.dtype}; they must be "
            "[N, H, W, 3] uint8, or a list of images or of paths"
        )
    return images


def load(workdir: str | Path, step: int | None = None) -> Trained:
    """Opens a network that a run trained; the data set is not needed.

    Args:
        workdir: the run's folder.
        step: of the checkpoint; by default the one with the best validation accuracy.

    Returns:
        The network with `predict` and `features`.

    Raises:
        InputError: the folder holds no run.
        RunError: there is no such checkpoint, or it cannot be read.

    Examples:
        >>> load("nowhere")
        Traceback (most recent call last):
        gini_jax.errors.InputError: 'nowhere' holds no run; give the --workdir of one
    """
    folder = run_path("workdir", str(workdir))
    if not (folder / "config.json").is_file() or not (folder / "dataset.json").is_file():
        raise InputError(f"{str(workdir)!r} holds no run; give the --workdir of one")
    config = saved_config(folder)
    about = read_json(folder / "dataset.json")
    with contextlib.closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        step = checkpoints.best_step() if step is None else step
        variables = checkpoints.variables(step)
    names = tuple(about["class_names"])
    return Trained(
        model=create_model_of(config, len(names), axis_name=None),
        variables=jax.tree.map(jnp.asarray, variables),
        config=config,
        class_names=names,
        image_size=about["image_size"],
        step=step,
    )
