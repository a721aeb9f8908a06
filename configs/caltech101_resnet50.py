"""ResNet-50 on Caltech-101."""

from ml_collections import ConfigDict

from gini_jax.config.recipes import caltech101_resnet


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    config = caltech101_resnet("caltech101_resnet50", objective)
    config.model.dropout = 0.4
    return config
