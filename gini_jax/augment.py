"""Augmentation on the device, a key an image, so that it does not depend on the device count."""

from functools import partial
from typing import Any

import dm_pix as pix
import jax
import jax.numpy as jnp


def augment_batch(config: Any, key: jax.Array, images: jax.Array, image_size: int) -> jax.Array:
    """Random crops and flips of training images.

    Args:
        config: `config.augment`: `crop_padding` and `flip`.
        key: `[N]` random keys, one an image.
        images: `[N, H, W, 3]` uint8, `H, W >= image_size`.
        image_size: height and width of the crops.

    Returns:
        `[N, image_size, image_size, 3]` float32 in `[0, 1]`.

    Example:
        >>> from gini_jax.config import default_config
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> images = jnp.full((2, 8, 8, 3), 255, jnp.uint8)
        >>> augment_batch(default_config().augment, keys, images, 8).max().item()
        1.0
    """
    size = images.shape[1:3]

    def augment(key: jax.Array, image: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(key)
        pad = jnp.array([config.crop_padding] * 2)
        corner = jax.random.randint(crop_key, (2,), -pad, jnp.array(size) - image_size + pad + 1)
        mirrored = config.flip & jax.random.bernoulli(flip_key)
        return _cut_out(image, corner, mirrored, image_size)

    return jax.vmap(augment)(key, to_float(images))


def _cut_out(image: jax.Array, corner: jax.Array, mirrored: jax.Array, size: int) -> jax.Array:
    """The square of `size` that begins at `corner`, zero where it leaves the image, or its mirror.

    By products with selection matrices: a TPU would take slices that differ from image to image
    one after the other, for a fifth of a ResNet-18's training step.
    """
    scale = jnp.where(jnp.array([False, True]) & mirrored, -1.0, 1.0)
    start = jnp.where(scale < 0, corner + size, -corner)
    return jax.image.scale_and_translate(
        image, (size, size, image.shape[-1]), (0, 1), scale, start, method="linear"
    )


def centre_crop(images: jax.Array, image_size: int) -> jax.Array:
    """The centres of images for evaluation, `[N, image_size, image_size, 3]`, in `[0, 1]`.

    Example:
        >>> centre_crop(jnp.zeros((2, 10, 10, 3), jnp.uint8), 8).shape
        (2, 8, 8, 3)
    """
    crop = partial(pix.center_crop, height=image_size, width=image_size)
    return to_float(jax.vmap(crop)(images))


def to_float(images: jax.Array) -> jax.Array:
    """uint8 in `[0, 255]` to float32 in `[0, 1]`; not standardised, as in the paper's recipe."""
    return images.astype(jnp.float32) / 255.0
