"""Corruptions: accuracy on test images with noise, blur, less contrast, large pixels, and JPEG.

Each has the five strengths of CIFAR-10-C (Hendrycks and Dietterich, arXiv 1903.12261, and its
published code). All but JPEG run on the device. At most 2,000 test images are used.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image

from gini_jax.downstream.subject import Subject
from gini_jax.drawing import COLOURS, mean_and_range

MOST = 2000
KEYS = {"corruption_accuracy": ("Mean accuracy on corrupted images", True)}
IMAGES = Float[np.ndarray, "N h w 3"]


def noise(images: IMAGES, deviation: float) -> Any:
    """Adds Gaussian noise of a given standard deviation, and clips to `[0, 1]`."""
    drawn = jax.random.normal(jax.random.key(0), images.shape)
    return jnp.clip(images + deviation * drawn, 0, 1)


def blur(images: IMAGES, deviation: float) -> Any:
    """Blurs with a Gaussian of a given standard deviation in pixels."""
    return pix.gaussian_blur(jnp.asarray(images), deviation, kernel_size=9, padding="SAME")


def contrast(images: IMAGES, factor: float) -> Any:
    """Multiplies the differences from an image's mean colour by a factor."""
    mean = images.mean(axis=(1, 2), keepdims=True)
    return jnp.clip(mean + factor * (images - mean), 0, 1)


def pixelate(images: IMAGES, factor: float) -> Any:
    """Shrinks an image to `factor` times its side by averaging, and enlarges it again."""
    count, side = images.shape[:2]
    small = max(int(side * factor), 1)
    shrunk = jax.image.resize(images, (count, small, small, 3), "linear", antialias=True)
    return jnp.clip(jax.image.resize(shrunk, images.shape, "nearest"), 0, 1)


def jpeg(images: IMAGES, quality: float) -> Any:
    """Compresses the images as JPEG and decodes them again, with Pillow."""
    read = []
    for pixels in np.round(np.asarray(images) * 255).astype(np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=int(quality))
        read.append(np.asarray(Image.open(file)))
    return np.stack(read).astype(np.float32) / 255


KINDS: dict[str, tuple[Callable[[IMAGES, float], Any], tuple[float, ...]]] = {
    "noise": (noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "blur": (blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": (jpeg, (80, 65, 58, 50, 40)),
}


def measure(subject: Subject) -> dict[str, Any]:
    """Accuracies by kind, `corruptions/KIND [5]`, and uncorrupted; the mean over the kinds."""
    images, labels = subject.test_images(MOST)
    found: dict[str, Any] = {"corruptions/none": np.array([subject.accuracy(images, labels)])}
    for name, (corrupt, strengths) in KINDS.items():
        accuracies = [
            subject.accuracy(np.asarray(corrupt(images, strength)), labels)
            for strength in strengths
        ]
        found[f"corruptions/{name}"] = np.array(accuracies)
    found["corruption_accuracy"] = float(np.mean([found[f"corruptions/{x}"] for x in KINDS]))
    return found


def draw(arrays: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> Figure:
    """Accuracy by strength, one panel for each kind; strength 0 is the image as it is."""
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(KINDS), sharey=True), KINDS, strict=True):
        for colour, (group, runs) in zip(cycle(COLOURS), arrays.items(), strict=False):
            keys = ("corruptions/none", f"corruptions/{name}")
            values = np.array([np.concatenate([run[key] for key in keys]) for run in runs])
            mean_and_range(axis, np.arange(6), values, colour, group)
        axis.set_title(name)
        axis.set_xlabel("strength")
        axis.grid()
    figure.axes[0].set_ylabel("accuracy")
    figure.axes[0].legend(fontsize=8)
    return figure
