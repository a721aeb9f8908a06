"""Augmentation against Pillow and NumPy, and independent of devices and batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from gini_jax.config.change import default_config
from gini_jax.data.augment import augment_batch, centre_crop, mix_batch
from gini_jax.data.policies import OPERATIONS, POLICIES, apply_operation
from gini_jax.devices import AXIS


def augment_config(**settings):
    config = default_config().augment
    config.update(settings)
    return config


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(1, 256, (16, 12, 12, 3)).astype(np.uint8)


def keys_of(n):
    return jax.random.split(jax.random.key(0), n)


def augment_copies(image, n, size, **settings):
    """One image, augmented in n ways."""
    augment = jax.jit(partial(augment_batch, augment_config(**settings), image_size=size))
    return augment(keys_of(n), jnp.tile(image, (n, 1, 1, 1)))


# ------------------------------------------------------------- crops and erasing


def test_crops_move_the_image_with_zero_padding_and_flips_mirror_it():
    image = np.random.default_rng(0).integers(1, 256, (6, 6, 3)).astype(np.uint8)
    batch = augment_copies(image, 600, 6, crop_padding=2, flip=True)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0))).astype(np.float32) / 255
    crops = [padded[i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
    possible = [crop for c in crops for crop in (c, c[:, ::-1])]
    which = [[np.allclose(out, crop) for crop in possible].index(True) for out in np.asarray(batch)]
    assert set(which) == set(range(50))  # 600 draws: one of 50 missing with p < 0.001


def test_resized_crops_show_between_the_least_share_and_the_whole():
    """On an image whose colours are its pixels' places, a crop tells where it was taken."""
    places = np.linspace(0, 255, 64)
    image = np.stack(np.broadcast_arrays(places[:, None], places, 0), axis=-1).astype(np.uint8)
    out = augment_copies(image, 200, 32, resized_crop=0.25)
    rows, columns = np.asarray(out[..., 0]), np.asarray(out[..., 1])
    # From the first to the last pixel of the inside, of which a crop of 32 shows 29 steps.
    heights = (rows[:, 30, 16] - rows[:, 1, 16]) * 63 / 29 * 32
    widths = (columns[:, 16, 30] - columns[:, 16, 1]) * 63 / 29 * 32
    share, aspect = heights * widths / 64**2, widths / heights
    assert 0.22 < share.min() < 0.3
    assert 0.8 < share.max() < 1.1
    assert 0.7 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.45


def test_erasing_leaves_no_more_than_a_third_empty_as_often_as_it_is_told(images):
    image = np.full((32, 32, 3), 255, np.uint8)
    out = np.asarray(augment_copies(image, 400, 32, erasing=0.25))
    empty = 1 - out[..., 0].mean(axis=(1, 2))
    assert set(np.unique(out)) == {0, 1}
    assert 0.18 < (empty > 0).mean() < 0.32  # 0.25, standard error 0.022
    assert empty[empty > 0].min() > 0.01
    assert empty.max() < 0.36


def test_cutout_takes_a_square_out_or_what_of_it_lies_in_the_image():
    image = np.full((32, 32, 3), 255, np.uint8)
    out = np.asarray(augment_copies(image, 200, 32, cutout=8))
    empty = (1 - out[..., 0]).sum(axis=(1, 2))
    assert empty.max() == 64
    assert empty.min() >= 16
    assert 0.4 < (empty == 64).mean() < 0.8  # (25 / 32)^2 = 0.61


def test_evaluation_sees_the_centre():
    images = np.zeros((1, 8, 8, 3), np.uint8)
    images[:, 2:6, 2:6] = 255
    assert (centre_crop(images, 4) == 1.0).all()


# What only chooses pixels is the same to the bit; what computes with them, but for rounding.
EVERYTHING = {
    "choose": ({"crop_padding": 2, "flip": True, "erasing": 0.5, "cutout": 3}, 0),
    "compute": ({"resized_crop": 0.3, "flip": True, "policy": "randaugment"}, 1e-6),
}


@pytest.mark.parametrize("case", ["choose", pytest.param("compute", marks=pytest.mark.slow)])
def test_augmentation_of_an_image_does_not_depend_on_its_batch(case, images):
    settings, rounding = EVERYTHING[case]
    config = augment_config(**settings)
    augment = jax.jit(lambda keys, images: augment_batch(config, keys, images, 10))
    whole = augment(keys_of(16), images)
    assert whole.shape == (16, 10, 10, 3)
    assert float(whole.min()) >= 0
    assert float(whole.max()) <= 1
    for part in (slice(0, 2), slice(8, 16)):
        alone = augment(keys_of(16)[part], images[part])
        np.testing.assert_allclose(whole[part], alone, rtol=0, atol=rounding)


# ------------------------------------------------------------- policies


compiled_operation = jax.jit(apply_operation, static_argnums=4)


def operate(name, image, strength, sign=1.0, policy="trivialaugment"):
    kind = OPERATIONS.index(name)
    out = compiled_operation(image / np.float32(255), kind, strength, sign, POLICIES[policy])
    return np.asarray(out) * 255


@pytest.fixture
def picture():
    """Smooth, so that colours come in all levels and neighbours are alike."""
    small = np.random.default_rng(1).integers(20, 230, (5, 5, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((24, 24), Image.Resampling.BICUBIC))


PILLOW = {
    "identity": lambda image: image,
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1 + 0.99 * 0.6),
    "color": lambda image: ImageEnhance.Color(image).enhance(1 + 0.99 * 0.6),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1 + 0.99 * 0.6),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1 + 0.99 * 0.6),
    "posterize": lambda image: ImageOps.posterize(image, 8 - round(6 * 0.6)),
    "solarize": lambda image: ImageOps.solarize(image, 255 * 0.4),
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
}


@pytest.mark.parametrize("name", PILLOW)
def test_an_operation_equals_that_of_pillow(name, picture):
    expected = np.asarray(PILLOW[name](Image.fromarray(picture)), np.float32)
    difference = np.abs(operate(name, picture, 0.6) - expected)
    # Pillow works in integers: its grey, smooth image and mean are rounded before the blend.
    assert difference.max() <= (0.01 if name in ("identity", "posterize", "equalize") else 2.6)
    assert difference.mean() < 1


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_geometric_operation_equals_that_of_pillow(name, sign, picture):
    """Inside; at the border Pillow takes whole pixels, and there is black beyond it."""
    strength, policy = 0.5, POLICIES["randaugment"]
    amount, centre = sign * strength, (24 - 1) / 2
    shear, shift = policy.shear * amount, policy.translate * amount * 24
    matrices = {
        "shear_x": (1, shear, -shear * (centre + 0.5), 0, 1, 0),
        "shear_y": (1, 0, 0, shear, 1, -shear * (centre + 0.5)),
        "translate_x": (1, 0, -shift, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, -shift),
    }
    image = Image.fromarray(picture)
    if name == "rotate":
        turned = image.rotate(-policy.rotate * amount, Image.Resampling.BILINEAR)
    else:
        turned = image.transform(
            (24, 24), Image.Transform.AFFINE, matrices[name], Image.Resampling.BILINEAR
        )
    out = operate(name, picture, strength, sign, "randaugment")
    expected = np.asarray(turned, np.float32)
    shown = np.pad(expected.min(axis=-1) > 0, 2).astype(np.uint8)
    inside = np.asarray(Image.fromarray(shown).filter(ImageFilter.MinFilter(5)), bool)[2:-2, 2:-2]
    assert inside.mean() > 0.4
    assert np.abs(out - expected)[inside].max() <= 2


def test_operations_of_no_strength_leave_the_image(picture):
    for name in OPERATIONS:
        if name not in ("autocontrast", "equalize", "solarize"):  # which inverts 255 even then
            np.testing.assert_allclose(operate(name, picture, 0.0), picture, atol=0.01)


# ------------------------------------------------------------- mixing


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_images_and_labels_have_the_same_shares(kind):
    """Images that are black or white tell their shares themselves."""
    images = jnp.concatenate([jnp.zeros((2, 16, 16, 3)), jnp.ones((2, 16, 16, 3))])
    labels = jnp.repeat(jnp.eye(2), 2, axis=0)
    mix, shares = jax.jit(partial(mix_batch, augment_config(**{kind: 1.0}))), []
    for i in range(20):
        mixed, rows = mix(jax.random.key(i), images, labels)
        np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), rows[:, 1], atol=1e-5)
        np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(rows[0], rows[3][::-1], atol=1e-6)  # one share for all
        shares.append(float(rows[0, 0]))
        inside = (np.asarray(mixed) > 0) & (np.asarray(mixed) < 1)
        assert inside.all() if kind == "mixup" else not inside.any()
    assert max(shares) - min(shares) > 0.4


@pytest.mark.parametrize("devices", [2, 8])
def test_a_partner_does_not_depend_on_the_number_of_devices(devices, images):
    config = augment_config(mixup=1.0, cutmix=1.0)
    labels = np.eye(16, dtype=np.float32)

    def mix(images, labels):
        return mix_batch(config, jax.random.key(3), images / 255.0, labels, AXIS)

    whole = jax.jit(lambda *x: mix_batch(config, jax.random.key(3), *x))(images / 255.0, labels)
    parts = [x.reshape(devices, -1, *x.shape[1:]) for x in (images, labels)]
    mapped = jax.pmap(mix, AXIS, devices=jax.devices()[:devices])(*parts)
    for one, several in zip(whole, mapped, strict=True):
        np.testing.assert_allclose(np.asarray(several).reshape(one.shape), one, atol=1e-7)
