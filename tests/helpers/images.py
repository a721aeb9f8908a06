"""Folders of images, and the config of a run on one."""

import numpy as np
from PIL import Image

from gini_jax.config.change import set_component
from tests.helpers import dense


def write_images(folder, count, shade, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(shade, shade + 60, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")


def images_config(root, **changes):
    config = dense.get_config("ce")
    config.dataset.update(name="folder", data_dir=str(root), num_classes=0, image_size=0)
    config.dataset.update(test_size=8, val_size=4)
    config.update(batch_size=4, num_epochs=1)
    set_component(config, "schedule", "constant")
    config.update_from_flattened_dict(changes)
    return config
