"""The digits' config with a network of one hidden layer: compiled in no time.

For runs of which the network does not matter. tiny.py has convolutions and batch norm.
"""

from ml_collections import ConfigDict

from gini_jax.config.change import set_component
from tests.helpers import tiny


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    config = tiny.get_config(objective)
    config.name = "dense"
    set_component(config, "model", "tests.helpers.plugins:TwoLayers", width=16)
    config.loss.layers = ("hidden",)
    return config
