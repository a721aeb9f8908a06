"""Augmentation on the device, with one key per image, so the device count does not matter."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key, Shaped, UInt8
from ml_collections import ConfigDict

from gini_jax.config.registry import NOT_NEGATIVE, SHARE, Registry, Setting
from gini_jax.data.policies import POLICIES, apply_policy

ERASED_AREA = (0.02, 1 / 3)  # shares of the image, and ...
ERASED_ASPECT = 0.3  # ... the smallest aspect ratio of random erasing, as in its paper
CROP_ASPECT = 3 / 4  # the smallest aspect ratio of random resized crops, as in Inception


def augment_batch(
    config: ConfigDict, key: Key[Array, " N"], images: Shaped[Array, "N ..."], image_size: int
) -> Float[Array, "N ..."]:
    """Random crops and flips of training images, and what `AUGMENTATIONS` lists, in its order.

    Features of a frozen network, `[N, V, C]`, were taken of images augmented before: it draws one
    of an image's `V` views.

    Args:
        config: `config.augment`.
        key: `[N]` random keys, one per image.
        images: `[N, H, W, 3]` uint8, `H, W >= image_size`; or features.
        image_size: height and width of the crops.

    Returns:
        `[N, image_size, image_size, 3]` float32 in `[0, 1]`; or features `[N, C]`.

    Examples:
        >>> from gini_jax.config import default_config
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> images = jnp.full((2, 8, 8, 3), 255, jnp.uint8)
        >>> augment_batch(default_config().augment, keys, images, 8).max().item()
        1.0
    """
    if _are_features(images):
        return jax.vmap(jax.random.choice)(key, images)
    augmentations = list(augmentations_of(config).values())

    def augment(key: jax.Array, image: jax.Array) -> jax.Array:
        crop_key, *keys = jax.random.split(key, 1 + len(augmentations))
        if config.resized_crop:
            image = _resized_crop(crop_key, image, image_size, config.resized_crop, config.flip)
        else:
            image = _padded_crop(crop_key, image, image_size, config.crop_padding, config.flip)
        for own_key, (augmentation, value) in zip(keys, augmentations, strict=True):
            if value:
                image = augmentation.change(own_key, image, value)
        return image

    return jax.vmap(augment)(key, to_float(images))


def _are_features(images: Array) -> bool:
    """Whether these are a frozen network's features, `[N, V, C]`, in the place of images."""
    return images.ndim == 3


def mix_batch(
    config: ConfigDict,
    key: Key[Array, ""],
    images: Float[Array, "n ..."],
    labels: Float[Array, "n K"],
    axis_name: str | None = None,
) -> tuple[Float[Array, "n ..."], Float[Array, "n K"]]:
    """Mixup and CutMix: each image and its label row, mixed with those of a partner.

    The partner is the example at the mirrored place of the global batch, `N - 1 - i` for `i`, on
    any number of devices. The whole batch has one mixing coefficient, drawn from Beta(a, a), as in
    the papers (arXiv 1710.09412 and 1905.04899). If both are on, each batch draws one of them.

    Args:
        config: `config.augment`: `mixup` and `cutmix`, each the `a` of its distribution or 0.
        key: one key for the batch, the same on all devices.
        images: `[n, H, W, 3]`, this device's part of the batch.
        labels: `[n, K]` rows that sum to 1.
        axis_name: the mapped axis that the batch is divided over, if there is one.

    Returns:
        The mixed images and labels; the rows still sum to 1.

    Examples:
        >>> from gini_jax.config import default_config
        >>> config = default_config().augment
        >>> config.mixup = 1.0
        >>> images, labels = jnp.zeros((2, 8, 8, 3)), jnp.eye(2)
        >>> _, mixed = mix_batch(config, jax.random.key(0), images, labels)
        >>> mixed.sum(axis=1).round(4).tolist()
        [1.0, 1.0]
    """
    if not (config.mixup or config.cutmix):
        return images, labels
    kind_key, coefficient_key, box_key = jax.random.split(key, 3)
    probability = 0.5 if config.mixup and config.cutmix else float(config.cutmix > 0)
    cut = jax.random.bernoulli(kind_key, probability)
    concentration = jnp.where(cut, config.cutmix or 1.0, config.mixup or 1.0)
    coefficient = jax.random.beta(coefficient_key, concentration, concentration)
    size = images.shape[1:3]
    side = jnp.sqrt(1 - coefficient)
    centre = jax.random.uniform(box_key, (2,), maxval=jnp.array(size))
    half = jnp.array(size) * side / 2
    box = _rectangle(centre - half, centre + half, size)
    own = jnp.where(cut, 1.0 - box, coefficient)  # per pixel
    coefficient = own.mean()  # the box may extend beyond the image
    other_images, other_labels = _mirrored((images, labels), axis_name)
    own = own[..., None]
    mixed_labels = coefficient * labels + (1 - coefficient) * other_labels
    return own * images + (1 - own) * other_images, mixed_labels


def _mirrored(tree: Any, axis_name: str | None) -> Any:
    """For each example, the one at the mirrored place of the global batch."""
    if axis_name is not None:
        devices = lax.axis_size(axis_name)
        pairs = [(i, devices - 1 - i) for i in range(devices)]
        tree = lax.ppermute(tree, axis_name, pairs)
    return jax.tree.map(lambda x: x[::-1], tree)


# ---------------------------------------------------------------------------- crops
#
# Crops are products with selection matrices. Slices whose place differs from image to image would
# run one at a time on a TPU, which costs a fifth of a ResNet-18's training step.


def _padded_crop(
    key: jax.Array, image: jax.Array, size: int, padding: int, flip: bool
) -> jax.Array:
    """A square of `size` out of the zero-padded image, or its mirror image."""
    corner_key, flip_key = jax.random.split(key)
    free = jnp.array(image.shape[:2]) - size
    corner = jax.random.randint(corner_key, (2,), -padding, free + padding + 1)
    mirrored = flip & jax.random.bernoulli(flip_key)
    scale = jnp.where(jnp.array([False, True]) & mirrored, -1.0, 1.0)
    start = jnp.where(scale < 0, corner + size, -corner)
    return _resample(image, size, scale, start)


def _resized_crop(
    key: jax.Array, image: jax.Array, size: int, least_area: float, flip: bool
) -> jax.Array:
    """A rectangle of at least `least_area` of the image's area, resized to a square of `size`."""
    area_key, aspect_key, corner_key, flip_key = jax.random.split(key, 4)
    whole = jnp.array(image.shape[:2], jnp.float32)
    area = whole.prod() * jax.random.uniform(area_key, minval=least_area)
    aspect = _log_uniform(aspect_key, CROP_ASPECT, 1 / CROP_ASPECT)
    sides = jnp.sqrt(area * jnp.array([1 / aspect, aspect]))
    sides = jnp.minimum(sides, whole)
    corner = jax.random.uniform(corner_key, (2,), maxval=whole - sides + 1e-6)
    mirrored = flip & jax.random.bernoulli(flip_key)
    image = jnp.where(mirrored, image[:, ::-1], image)
    scale = size / sides
    return jnp.clip(_resample(image, size, scale, -corner * scale), 0.0, 1.0)


def _resample(image: jax.Array, size: int, scale: jax.Array, start: jax.Array) -> jax.Array:
    shape = (size, size, image.shape[-1])
    return jax.image.scale_and_translate(image, shape, (0, 1), scale, start, method="linear")


def centre_crop(images: Shaped[Array, "N ..."], image_size: int) -> Float[Array, "N ..."]:
    """The centres of images for evaluation, `[N, image_size, image_size, 3]`, in `[0, 1]`.

    Of features `[N, V, C]` it takes the first view, that of the image itself.

    Examples:
        >>> centre_crop(jnp.zeros((2, 10, 10, 3), jnp.uint8), 8).shape
        (2, 8, 8, 3)
    """
    if _are_features(images):
        return images[:, 0]
    import dm_pix as pix  # imports chex, which help and errors do without

    crop = partial(pix.center_crop, height=image_size, width=image_size)
    return to_float(jax.vmap(crop)(images))


def to_float(images: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """uint8 in `[0, 255]` to float32 in `[0, 1]`; not standardised, as in the paper's recipe."""
    return jnp.asarray(images, jnp.float32) / 255.0


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def statistics(config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation that `config.dataset` names, three numbers each.

    Examples:
        >>> from gini_jax.config import default_config
        >>> config = default_config().dataset
        >>> config.mean = ("imagenet",)
        >>> statistics(config)
        ((0.485, 0.456, 0.406), (1.0, 1.0, 1.0))
    """
    found = []
    for name, none in (("mean", 0.0), ("std", 1.0)):
        values = tuple(getattr(config, name)) or (none,) * 3
        found.append(IMAGENET[name] if values == ("imagenet",) else values)
    return found[0], found[1]


def standardize(images: Float[Array, "N ..."], config: ConfigDict) -> Float[Array, "N ..."]:
    """Images in `[0, 1]` as the network sees them: `(images - mean) / std`.

    Args:
        images: `[N, H, W, 3]`; features of a frozen network, `[N, C]`, stay as they are.
        config: `config.dataset`: `mean` and `std`; without them images stay as they are.
    """
    if images.ndim == 2 or (not config.mean and not config.std):
        return images
    mean, std = (jnp.array(values, images.dtype) for values in statistics(config))
    return (images - mean[None, None, None]) / std[None, None, None]


# ---------------------------------------------------------------------------- erasing


def _erase(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
    """Random erasing (arXiv 1708.04896): a random rectangle becomes zero."""
    whether_key, area_key, aspect_key, corner_key = jax.random.split(key, 4)
    size = image.shape[:2]
    whole = jnp.array(size, jnp.float32)
    least, most = ERASED_AREA
    area = whole.prod() * jax.random.uniform(area_key, minval=least, maxval=most)
    aspect = _log_uniform(aspect_key, ERASED_ASPECT, 1 / ERASED_ASPECT)
    sides = jnp.minimum(jnp.sqrt(area * jnp.array([1 / aspect, aspect])), whole)
    corner = jax.random.uniform(corner_key, (2,), maxval=whole - sides + 1e-6)
    box = _rectangle(corner, corner + sides, size)
    kept = jnp.where(jax.random.bernoulli(whether_key, probability), 1.0 - box, 1.0)
    return image * kept[..., None]


def _cut_out(key: jax.Array, image: jax.Array, side: int) -> jax.Array:
    """Cutout (arXiv 1708.04552): a square around a random pixel becomes zero."""
    size = image.shape[:2]
    centre = jax.random.randint(key, (2,), 0, jnp.array(size))
    start = centre - side // 2
    return image * (1.0 - _rectangle(start, start + side, size))[..., None]


def _rectangle(start: jax.Array, stop: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """`[H, W]`: 1 where a pixel's row and column both lie in the rounded `[start, stop)`."""
    start, stop = jnp.round(start), jnp.round(stop)
    rows, columns = (
        (jnp.arange(size[i]) >= start[i]) & (jnp.arange(size[i]) < stop[i]) for i in (0, 1)
    )
    return (rows[:, None] & columns).astype(jnp.float32)


def _log_uniform(key: jax.Array, least: float, most: float) -> jax.Array:
    low, high = math.log(least), math.log(most)
    return jnp.exp(jax.random.uniform(key, minval=low, maxval=high))


# ---------------------------------------------------------------------------- the table


class Augmentation(NamedTuple):
    """What is done to an image after its crop.

    Attributes:
        change: from a key, an image `[H, W, 3]` in `[0, 1]` and the setting's value to an image.
        setting: `augment.NAME`; a value such as 0 or "" switches it off.
    """

    change: Callable[[jax.Array, jax.Array, Any], jax.Array]
    setting: Setting = Setting(0.0, "strength; 0: off", bounds=NOT_NEGATIVE)

    @property
    def settings(self) -> dict[str, Setting]:
        """The setting, of an augmentation that has a section of its own in the config."""
        return {"strength": self.setting}


# Applied in this order; a new one is one function and one line. A plugin is an `Augmentation`, or a
# function like its `change`, whose value is a number from 0 on.
AUGMENTATIONS = Registry(
    "augmentation",
    {
        "policy": Augmentation(
            apply_policy, Setting("", "RandAugment or TrivialAugment", choices=tuple(POLICIES))
        ),
        "erasing": Augmentation(
            _erase, Setting(0.0, "probability of erasing a random rectangle", bounds=SHARE)
        ),
        "cutout": Augmentation(
            _cut_out, Setting(0, "side, in pixels, of a square to erase", bounds=NOT_NEGATIVE)
        ),
    },
    lambda part: isinstance(part, Augmentation) or callable(part),
    "a function, or an Augmentation",
    lambda part: part if isinstance(part, Augmentation) else Augmentation(part),
)


def augmentations_of(config: ConfigDict) -> dict[str, tuple[Augmentation, Any]]:
    """The augmentations of a config, and their values, by key, in the order in which they act.

    Args:
        config: `config.augment`. A key that is no setting of the package is a plugin, or has a
            section with the plugin's `name` and its `strength`.
    """
    found = {name: (AUGMENTATIONS[name], config[name]) for name in AUGMENTATIONS if name in config}
    for key, value in config.items():
        if hasattr(value, "items"):
            found[key] = AUGMENTATIONS.find(value["name"]), value["strength"]
        elif ":" in key:
            found[key] = AUGMENTATIONS.find(key), value
    return found
