"""ResNet-18 on CIFAR-100, with the published settings of the paper's authors."""

from ml_collections import ConfigDict

from gini_jax.config.recipes import cifar100_resnet


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    return cifar100_resnet("cifar100_resnet18", objective)
