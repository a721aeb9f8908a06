"""Whatever a file's mode, its pixels are those that a person sees."""

import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from gini_jax.data.images import as_stored, decode, fit
from gini_jax.errors import InputError


def _encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _palette(transparent=False):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    return _encoded(image, **({"transparency": 1} if transparent else {}))


def _rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture lies at the right of the file
    image = Image.new("RGB", (4, 2), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 2, 2))
    return _encoded(image, "TIFF", exif=exif)


SEEN = {
    "grey": (_encoded(Image.new("L", (2, 2), 7)), (7, 7, 7)),
    "one bit": (_encoded(Image.new("1", (2, 2), 1)), (255, 255, 255)),
    "palette": (_palette(), (200, 100, 50)),
    "transparent palette": (_palette(transparent=True), (255, 255, 255)),
    "half transparent": (_encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128))), (127, 127, 127)),
    "grey with alpha": (_encoded(Image.new("LA", (2, 2), (0, 0))), (255, 255, 255)),
    "CMYK": (_encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "16 bits": (_encoded(Image.fromarray(np.full((2, 2), 0x8080, np.uint16))), (128, 128, 128)),
    "float": (_encoded(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF"), (128,) * 3),
}


@pytest.mark.parametrize("mode", SEEN)
def test_pixels_are_those_that_a_person_sees(mode):
    encoded, colour = SEEN[mode]
    pixels = decode(encoded)
    assert pixels.shape == (2, 2, 3)
    assert np.abs(pixels.astype(int) - np.array(colour)).max() <= 1


def test_the_orientation_of_a_photograph_is_applied():
    pixels = decode(_rotated())
    assert pixels.shape == (4, 2, 3)
    assert pixels[0, 0].tolist() == [0, 0, 255]
    assert pixels[3, 0].tolist() == [255, 0, 0]


def test_a_very_long_image_is_cut_to_its_centre():
    image = np.zeros((20, 60000, 3), np.uint8)
    image[:, 29990:30010] = 255
    square = fit(image, 28)
    assert square.shape == (32, 32, 3)
    assert square.mean() > 200


def test_processes_that_decode_start_without_jax():
    code = "import sys, gini_jax.data.images; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_decompression_bomb_is_named_before_it_is_decoded(tmp_path):
    """A header that promises 20,000 x 20,000 pixels, in a file of some hundred bytes."""
    path = tmp_path / "bomb.png"
    Image.new("L", (1, 1)).save(path)
    whole = path.read_bytes()
    header = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + whole[24:29]
    path.write_bytes(whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:])
    with pytest.raises(InputError, match=r"bomb\.png cannot be read as an image .*decompression"):
        as_stored(path, 0, 32)
