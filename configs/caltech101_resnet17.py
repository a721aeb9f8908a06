"""ResNet-17 on Caltech-101.

No public text defines ResNet-17; we interpret it as bottleneck blocks 1, 1, 1, 2.
"""

from ml_collections import ConfigDict

from gini_jax.config.recipes import caltech101_resnet


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    return caltech101_resnet("caltech101_resnet17", objective)
