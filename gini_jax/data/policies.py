"""RandAugment and TrivialAugment: operations of random kind and strength on an image."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key


class Policy(NamedTuple):
    """How an augmentation policy draws its operations.

    Attributes:
        num_operations: how many are applied in sequence.
        strength: of all operations, in `[0, 1]`; None: drawn for each operation.
        shear: the largest shear, in pixels per pixel.
        translate: the largest shift, as a share of the image's side.
        rotate: the largest angle, in degrees.
        enhance: the largest change of brightness, colour, contrast and sharpness.
        bits: the smallest number of bits that posterizing leaves.
    """

    num_operations: int
    strength: float | None
    shear: float
    translate: float
    rotate: float
    enhance: float
    bits: int


# Operations and ranges follow torchvision's RandAugment (arXiv 1909.13719; 2 operations of strength
# 9 of 30) and TrivialAugmentWide (arXiv 2103.10158; its shift of 32 pixels is taken as 32 / 224 of
# the side, for images of any size).
POLICIES = {
    "randaugment": Policy(2, 9 / 30, 0.3, 150 / 331, 30.0, 0.9, 4),
    "trivialaugment": Policy(1, None, 0.99, 32 / 224, 135.0, 0.99, 2),
}

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)


def apply_policy(
    key: Key[Array, ""], image: Float[Array, "H W 3"], name: str
) -> Float[Array, "H W 3"]:
    """Random operations on an image.

    Args:
        key: one key.
        image: `[H, W, 3]` in `[0, 1]`.
        name: `randaugment` or `trivialaugment`.

    Returns:
        `[H, W, 3]` in `[0, 1]`.

    Examples:
        >>> apply = jax.jit(apply_policy, static_argnames="name")
        >>> apply(jax.random.key(0), jnp.ones((8, 8, 3)), name="trivialaugment").shape
        (8, 8, 3)
    """
    policy = POLICIES[name]
    for operation_key in jax.random.split(key, policy.num_operations):
        kind_key, strength_key, sign_key = jax.random.split(operation_key, 3)
        kind = jax.random.randint(kind_key, (), 0, len(OPERATIONS))
        strength: Any = policy.strength
        if strength is None:
            strength = jax.random.randint(strength_key, (), 0, 31) / 30
        sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
        image = apply_operation(image, kind, strength, sign, policy)
    return image


def apply_operation(
    image: Float[Array, "H W 3"],
    kind: Int[Array, ""] | int,
    strength: Any,
    sign: Any,
    policy: Policy,
) -> Float[Array, "H W 3"]:
    """One operation on an image.

    Under vmap all kinds are computed and one is kept. To save work, the geometric operations share
    one resampling, and the enhancing ones share one blend.

    Args:
        image: `[H, W, 3]` in `[0, 1]`.
        kind: which one, an index into `OPERATIONS`.
        strength: in `[0, 1]`, from no effect to the end of the policy's range.
        sign: 1 or -1, for operations that have a direction.
        policy: the ranges.

    Returns:
        `[H, W, 3]` in `[0, 1]`.
    """

    def among(*names: str) -> jax.Array:
        return jnp.array([name in names for name in OPERATIONS])[kind]

    signed = strength * sign
    warped = _warp(image, among, signed, policy)
    enhanced = _enhance(image, among, 1 + signed * policy.enhance)
    levels = jnp.round(image * 255).astype(jnp.int32)
    dropped = jnp.round((8 - policy.bits) * strength).astype(jnp.int32)
    result = jnp.where(among("identity"), image, warped)
    result = jnp.where(among("brightness", "color", "contrast", "sharpness"), enhanced, result)
    result = jnp.where(among("posterize"), (levels >> dropped << dropped) / 255, result)
    # Adding a quarter of a level keeps rounding away from thresholds at whole levels.
    kept = levels + 0.25 < 255 * (1.0 - strength)
    result = jnp.where(among("solarize"), jnp.where(kept, levels, 255 - levels) / 255, result)
    result = jnp.where(among("autocontrast"), _autocontrast(image), result)
    return jnp.where(among("equalize"), _equalize(levels), result)


def _warp(image: jax.Array, among: Any, signed: jax.Array, policy: Policy) -> jax.Array:
    """Shears, shifts and rotations about the centre; zero where the result has no source pixel."""
    height, width = image.shape[:2]
    angle = jnp.where(among("rotate"), jnp.deg2rad(signed * policy.rotate), 0.0)
    shear = jnp.array([among("shear_y"), among("shear_x")]) * signed * policy.shear
    shift = jnp.array([among("translate_y") * height, among("translate_x") * width])
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    # From a pixel's place in the result, (row, column), to its place in the image.
    matrix = jnp.array([[cosine, shear[0] - sine], [shear[1] + sine, cosine]])
    centre = jnp.array([height - 1, width - 1]) / 2
    offset = centre - matrix @ centre - shift * signed * policy.translate
    import dm_pix as pix

    return pix.affine_transform(
        image,
        jnp.eye(3).at[:2, :2].set(matrix),
        offset=jnp.append(offset, 0.0),
        mode="constant",
    )


def _enhance(image: jax.Array, among: Any, factor: jax.Array) -> jax.Array:
    """Extrapolates away from the black, grey, mean-grey or blurred image."""
    import dm_pix as pix

    grey = pix.rgb_to_grayscale(image, keep_dims=True)
    least = jnp.where(among("color"), grey, 0.0)
    least = jnp.where(among("contrast"), grey.mean(), least)
    least = jnp.where(among("sharpness"), _smooth(image), least)
    return jnp.clip(least + factor * (image - least), 0.0, 1.0)


def _smooth(image: jax.Array) -> jax.Array:
    """The mean of a pixel, weighted by five, and its eight neighbours; the border is unchanged."""
    window = lax.reduce_window(image, 0.0, lax.add, (3, 3, 1), (1, 1, 1), "VALID")
    inner = (window + 4 * image[1:-1, 1:-1]) / 13
    return image.at[1:-1, 1:-1].set(inner)


def _autocontrast(image: jax.Array) -> jax.Array:
    """Stretches each channel to the whole range."""
    low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
    stretched = (image - low) / jnp.maximum(high - low, 1e-6)
    return jnp.where(high > low, stretched, image)


def _equalize(levels: jax.Array) -> jax.Array:
    """Makes each channel's histogram as flat as possible, as Pillow's ImageOps.equalize does.

    Args:
        levels: `[H, W, 3]` integers in `[0, 255]`.
    """

    def equalize(channel: jax.Array) -> jax.Array:
        pixels = channel.ravel()
        below = (pixels[:, None] < jnp.arange(256)).sum(axis=0)  # pixels of a lower level
        step = below[pixels.max()] // 255  # the brightest level is left out
        table = jnp.minimum((below + step // 2) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, table[channel], channel)

    return jax.vmap(equalize, in_axes=-1, out_axes=-1)(levels) / 255
