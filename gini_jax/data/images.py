"""Image files decoded to what a person sees: 8-bit RGB, whatever their mode."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

DECODING = 2  # increase this when the code below changes, so that images are decoded again

RGB = UInt8[np.ndarray, "H W 3"]


def decode(image: bytes | Path | np.ndarray | Image.Image) -> RGB:
    """An image's pixels.

    Palettes are resolved, transparent pixels become white, EXIF orientation is applied, 16-bit and
    floating-point values are scaled to 8 bits, and grey becomes three equal channels.

    Args:
        image: an encoded file, its path, an image that Pillow opened, or pixels `[H, W]`,
            `[H, W, 1]` or `[H, W, 3]`.

    Raises:
        OSError, ValueError, SyntaxError: the image cannot be read.

    Examples:
        >>> decode(np.zeros((4, 5, 1), np.uint8)).shape
        (4, 5, 3)
    """
    if isinstance(image, np.ndarray):
        return _from_pixels(image)
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(image))
    source: Any = io.BytesIO(image) if isinstance(image, bytes) else image
    with Image.open(source) as opened:
        return np.asarray(to_rgb(opened))


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow image as 8-bit RGB.

    Examples:
        >>> palette = Image.new("P", (1, 1))
        >>> palette.putpalette([255, 0, 0])
        >>> to_rgb(palette).getpixel((0, 0))
        (255, 0, 0)
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_from_pixels(np.asarray(image)))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    return image.convert("RGB")


def _from_pixels(pixels: np.ndarray) -> RGB:
    """Pixels of any number type in three 8-bit channels."""
    if pixels.dtype != np.uint8:
        values = pixels.astype(np.float64)
        if np.issubdtype(pixels.dtype, np.floating):
            full = 1.0 if values.max(initial=0) <= 1 else 255.0
        else:
            full = 65535.0 if values.max(initial=0) > 255 or pixels.dtype == np.uint16 else 255.0
        pixels = np.clip(np.round(values * (255 / full)), 0, 255).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def stored_size(image_size: int) -> int:
    """Side of the stored squares, with room for crops of `image_size`; 0 for 0.

    Examples:
        >>> stored_size(224)
        256
    """
    return image_size + image_size // 7


def fit(image: RGB, image_size: int) -> RGB:
    """The centre square of an image, with room for crops of `image_size`; 0: the image unchanged.

    Examples:
        >>> fit(np.zeros((300, 400, 3), np.uint8), 224).shape
        (256, 256, 3)
    """
    if not image_size:
        return image
    side = stored_size(image_size)
    height, width = image.shape[:2]
    scale = side / min(height, width)
    # Only the part that is kept is resized: all of a very long image would not fit into memory.
    kept_h, kept_w = min(height, side / scale), min(width, side / scale)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    if max(size) > 8 * side:
        top, left = (height - kept_h) / 2, (width - kept_w) / 2
        box = (left, top, left + kept_w, top + kept_h)
        centre = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box=box)
        return np.asarray(centre)
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
    return resized[top : top + side, left : left + side]
