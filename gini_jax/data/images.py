"""Image files decoded to 8-bit RGB, as an image viewer shows them, whatever their mode."""

import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from gini_jax.errors import InputError, first_line

DECODING = 3  # increase this when the code below changes, so that images are decoded again

RGB = UInt8[np.ndarray, "H W 3"]


def decode(image: Any) -> RGB:
    """An image's pixels.

    Palettes are resolved, transparent pixels become white, EXIF orientation is applied, 16-bit and
    floating-point values are scaled to 8 bits, and grey becomes three equal channels.

    Args:
        image: an encoded file, its path, an image that Pillow opened, or pixels `[H, W]` or
            `[H, W, C]` with 1 to 4 channels (grey, grey and alpha, RGB, RGBA) in an array of NumPy,
            jax or PyTorch.

    Raises:
        OSError, ValueError, SyntaxError: the image cannot be read. On damaged files Pillow raises
            others too.

    Examples:
        >>> decode(np.zeros((4, 5, 1), np.uint8)).shape
        (4, 5, 3)
    """
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(image))
    if not isinstance(image, (bytes, str, Path)):
        return _from_pixels(np.asarray(image))
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
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 2, 3, 4) or not pixels.size:
        raise ValueError(
            f"pixels have shape {pixels.shape}; they must be [H, W] or, channels last, [H, W, C] "
            "with 1 to 4 channels"
        )
    pixels = _eight_bits(pixels)
    if pixels.shape[-1] in (2, 4):
        mode = "LA" if pixels.shape[-1] == 2 else "RGBA"
        return np.asarray(to_rgb(Image.fromarray(np.ascontiguousarray(pixels), mode=mode)))
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def _eight_bits(pixels: np.ndarray) -> UInt8[np.ndarray, "H W C"]:
    """Numbers scaled to 0 to 255: from [0, 1], 8 or 16 bits, as their type and maximum say."""
    kind, size = pixels.dtype.kind, pixels.dtype.itemsize
    if (kind, size) == ("u", 1):
        return pixels
    if kind not in "buif":
        raise ValueError(f"pixels have type {pixels.dtype}; they must be numbers")
    values = pixels.astype(np.float64)
    if kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    largest = values.max()
    if kind == "b" or (kind == "f" and largest <= 1):
        full = 1.0
    else:
        sixteen = (kind, size) == ("u", 2) or (kind in "iu" and largest > 255)
        full = 65535.0 if sixteen else 255.0
    return np.clip(np.round(values * (255 / full)), 0, 255).astype(np.uint8)


def stored_size(image_size: int) -> int:
    """Side of the stored squares, with room for crops of `image_size`; 0 for 0.

    Examples:
        >>> stored_size(224)
        256
    """
    return image_size + image_size // 7


def fit(image: RGB, image_size: int) -> UInt8[np.ndarray, "h w 3"]:
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


def as_stored(image: Any, stored: int, image_size: int) -> RGB:
    """An image as the training stored it.

    Args:
        image: as in `decode`.
        stored: `config.dataset.image_size`.
        image_size: height and width that the network sees.

    Raises:
        InputError: it cannot be read.

    Examples:
        >>> as_stored(np.zeros((300, 400, 3), np.uint8), 0, 32).shape
        (32, 32, 3)
    """
    try:
        pixels = decode(Path(image).expanduser() if isinstance(image, (str, Path)) else image)
    except Exception as error:  # a damaged file can raise anything
        name = image if isinstance(image, (str, Path)) else f"the {type(image).__name__}"
        raise InputError(f"{name} cannot be read as an image ({first_line(error)})") from error
    if not stored and pixels.shape[:2] != (image_size, image_size):
        resized = fit(pixels, image_size)
        top = (resized.shape[0] - image_size) // 2
        return resized[top : top + image_size, top : top + image_size]
    return fit(pixels, stored)


def stored_or_reason(path: str, stored: int, image_size: int) -> RGB | str:
    """A file as `as_stored` gives it, or why it cannot be read.

    Worker processes call it; this module and what it imports do without jax, so that they start at
    once.

    Examples:
        >>> stored_or_reason("none.png", 0, 32)[:38]
        'none.png cannot be read as an image (['
    """
    try:
        return as_stored(path, stored, image_size)
    except InputError as error:
        return str(error)


def decoded_ahead(
    items: Iterable[Any], decode: Callable[[Any], Any], size: int, pool: Executor
) -> Iterator[list[Any]]:
    """Batches of decoded items; the next one is decoded while the caller works on one.

    Args:
        items: what `decode` takes, such as paths.
        decode: from an item to an image.
        size: items of a batch.
        pool: the workers.

    Examples:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> with ThreadPoolExecutor(2) as pool:
        ...     list(decoded_ahead("123", int, 2, pool))
        [[1, 2], [3]]
    """
    given = iter(items)
    coming = pool.map(decode, itertools.islice(given, size), chunksize=16)
    while batch := list(coming):
        coming = pool.map(decode, itertools.islice(given, size), chunksize=16)
        yield batch
