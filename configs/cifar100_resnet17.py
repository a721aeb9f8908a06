"""ResNet-17 on CIFAR-100, with the authors' published settings for ResNets.

No public text defines ResNet-17; we interpret it as bottleneck blocks 1, 1, 1, 2.
"""

from ml_collections import ConfigDict

from gini_jax.config.recipes import cifar100_resnet


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    return cifar100_resnet("cifar100_resnet17", objective)
