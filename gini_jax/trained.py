"""A trained network, ready for use, without its data set."""

import dataclasses
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from gini_jax.data.augment import centre_crop, standardize
from gini_jax.data.images import decode, fit
from gini_jax.errors import InputError
from gini_jax.storage import run_path
from gini_jax.training.checkpoints import Checkpoints
from gini_jax.training.experiment import create_model_of
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

    def __repr__(self) -> str:
        """The network in one line, without its numbers."""
        name = f"{self.config.name}:{self.config.objective}, seed {self.config.seed}"
        return (
            f"Trained({name}, step {self.step}: {type(self.model).__name__}, "
            f"{len(self.class_names)} classes, images of {self.image_size}x{self.image_size})"
        )

    def predict(self, images: Any, batch_size: int = 256) -> Prediction:
        """Probabilities and names of the classes.

        Args:
            images: `[N, H, W, 3]` uint8, or a sequence of such images of any size, of images that
                Pillow opened, or of paths.
            batch_size: images at a time.

        Raises:
            InputError: an image cannot be read, or the array has another shape or type.
        """
        logits = self._apply(images, batch_size)[0]
        probabilities = np.asarray(jax.nn.softmax(logits))
        return Prediction(probabilities, [self.class_names[k] for k in logits.argmax(axis=1)])

    def features(self, images: Any, batch_size: int = 256) -> dict[str, np.ndarray]:
        """The features of every layer, `[N, ..., C]`; arguments as in `predict`."""
        return self._apply(images, batch_size)[1]

    def _apply(self, images: Any, batch_size: int) -> Any:
        pixels = self._pixels(images)
        parts = [
            self._forward(self.variables, pixels[i : i + batch_size])
            for i in range(0, len(pixels), batch_size)
        ]
        return jax.tree.map(lambda *x: np.concatenate(x), *jax.device_get(parts))

    @cached_property
    def _forward(self) -> Any:
        @jax.jit
        def forward(variables: Any, images: Array) -> Any:
            seen = standardize(centre_crop(images, self.image_size), self.config.dataset)
            return self.model.apply(variables, seen, train=False)

        return forward

    def _pixels(self, images: Any) -> np.ndarray:
        """Images as the training stored them."""
        if isinstance(images, (str, Path)):
            images = [images]
        if not isinstance(images, Sequence):
            images = np.asarray(images)
            if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype != np.uint8:
                raise InputError(
                    f"images have shape {images.shape} and type {images.dtype}; they must be "
                    "[N, H, W, 3] uint8, or a list of such images or of paths"
                )
        if not len(images):
            raise InputError("images is empty; give at least one image or path")
        return np.stack([self._one(image) for image in images])

    def _one(self, image: Any) -> np.ndarray:
        try:
            pixels = decode(Path(image).expanduser() if isinstance(image, (str, Path)) else image)
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{image} cannot be read as an image ({error})") from error
        stored = self.config.dataset.image_size
        if not stored and pixels.shape[:2] != (self.image_size, self.image_size):
            resized = fit(pixels, self.image_size)
            top = (resized.shape[0] - self.image_size) // 2
            return resized[top : top + self.image_size, top : top + self.image_size]
        return fit(pixels, stored)


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
    about = json.loads((folder / "dataset.json").read_text())
    checkpoints = Checkpoints(folder / "checkpoints")
    step = checkpoints.best_step() if step is None else step
    variables = checkpoints.variables(step)
    checkpoints.close()
    names = tuple(about["class_names"])
    return Trained(
        model=create_model_of(config, len(names), axis_name=None),
        variables=jax.tree.map(jnp.asarray, variables),
        config=config,
        class_names=names,
        image_size=about["image_size"],
        step=step,
    )
