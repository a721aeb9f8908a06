"""The digits' config with a network of one hidden layer: compiled in no time.

For runs of which the network does not matter. tests/tiny.py has convolutions and batch norm.
"""

import flax.linen as nn
from ml_collections import ConfigDict

from gini_jax.config import set_component
from gini_jax.models.layers import Classifier
from gini_jax.settings import COUNT, setting
from tests import tiny


class Dense(nn.Module):
    """A hidden layer of features."""

    num_classes: int
    width: int = setting(16, "features", bounds=COUNT)
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False, example_index=None):
        """Logits and features by layer."""
        hidden = nn.relu(nn.Dense(self.width)(images.reshape(len(images), -1)))
        hidden = self.perturb("hidden", hidden)
        logits = Classifier(self.num_classes)(hidden, train=train, example_index=example_index)
        return logits, {"hidden": hidden, "pooled": hidden}


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    config = tiny.get_config(objective)
    config.name = "dense"
    set_component(config, "model", "tests.dense:Dense")
    config.loss.layers = ("hidden",)
    return config
