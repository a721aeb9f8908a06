"""Parts of a run as a user has them in a file of their own; see tests/test_plugins.py."""

import dataclasses
import json
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gini_jax.config.registry import Count, Positive, Share
from gini_jax.data.source import Example
from gini_jax.models.layers import Classifier


class TwoLayers(nn.Module):
    """A small network.

    Attributes:
        num_classes: `K`.
        width: features
        axis_name: not used.
    """

    num_classes: int
    width: Count = 8
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False, example_index=None):
        """Logits and features by layer."""
        hidden = nn.relu(nn.Dense(self.width)(images.reshape(images.shape[0], -1)))
        hidden = self.perturb("hidden", hidden)
        logits = Classifier(self.num_classes)(hidden, train=train, example_index=example_index)
        return logits, {"hidden": hidden, "pooled": hidden}


def spread_loss(features, labels, *, where=None, axis_name=None, power: Positive = 2.0):
    """The mean of a power of the features; `power` becomes a setting."""
    del labels, where
    value = (jnp.abs(features) ** power).mean()
    return jax.lax.pmean(value, axis_name) if axis_name else value


@dataclasses.dataclass(frozen=True)
class Pull:
    """A term with a state: features are pulled to a running mean of all of them.

    Attributes:
        strength: how far the mean moves in a step
    """

    strength: Share = 0.5

    def init(self, outputs):
        """A mean of 0, `[C]`."""
        return jnp.zeros(outputs.features["hidden"].shape[-1])

    def __call__(self, outputs, state):
        """Half the mean squared distance, and the mean moved to that of the batch."""
        hidden = outputs.features["hidden"]
        loss, mean = 0.5 * jnp.square(hidden - state).mean(), jax.lax.stop_gradient(hidden.mean(0))
        if outputs.axis_name is not None:
            loss, mean = jax.lax.pmean((loss, mean), outputs.axis_name)
        return loss, state + self.strength * (mean - state)


@dataclasses.dataclass(frozen=True)
class WarmRestarts:
    """Cosine waves, each as long as the one before.

    Attributes:
        waves: how many waves
    """

    waves: Count = 2
    extends, rates = False, ()

    def __call__(self, rate, steps):
        """See `gini_jax.training.schedules.Schedule`."""
        length = max(steps.after // self.waves, 1)
        one = optax.cosine_decay_schedule(rate, length)
        return optax.join_schedules([one] * self.waves, [length * i for i in range(1, self.waves)])


@dataclasses.dataclass(frozen=True)
class Lion:
    """Lion (arXiv 2302.06675).

    Attributes:
        b1: decay of the momentum in the update
    """

    b1: Positive = 0.9

    def __call__(self, rate, decay):
        """See `gini_jax.training.optim.Optimizer`."""
        return optax.lion(rate, b1=self.b1, weight_decay=decay.weight, mask=decay.mask)


def certainty(outputs):
    """A metric of a step: the largest probability."""
    return jax.nn.softmax(outputs.logits).max(axis=-1)


def darken(key, image, strength):
    """Multiplies the image by a random number above `1 - strength`."""
    return image * jax.random.uniform(key, minval=1 - strength)


def weight_count(trained):
    """An export: the number of weights, as text."""
    return str(sum(x.size for x in jax.tree.leaves(trained.variables["params"]))).encode()


class Halves:
    """Images that are bright on the left or on the right."""

    superclass_names = ()
    image_shape = (8, 8)
    name = "halves"
    class_names = ("left", "right")

    def __init__(self, config):
        del config
        self.splits = {"train": self._images(32), "test": self._images(8)}

    def _images(self, number):
        rng, found = np.random.default_rng(number), []
        for i in range(number):
            image = rng.integers(0, 100, (8, 8, 3)).astype(np.uint8)
            image[:, 4 * (i % 2) : 4 * (i % 2) + 4] += 100
            found.append(Example(image, i % 2))
        return found

    def fingerprint(self, split):
        """They are always the same."""
        return len(self.splits[split])


class Sparsity:
    """An evaluation."""

    KEYS: ClassVar = {"silent_features": "share of the features that are 0, over the test split"}
    TITLES: ClassVar = {"silent_features": ("Silent features", True)}

    @staticmethod
    def evaluate(inputs):
        """The number of `KEYS`."""
        return {"silent_features": float((inputs.test.pooled == 0).mean())}


class Notebook:
    """A logger."""

    def __init__(self, workdir, config):
        self._path = workdir / f"{config.name}-notes.txt"

    def write(self, line):
        """Adds the line."""
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def draw(self, pictures, step):
        """Does nothing."""

    def close(self):
        """Does nothing."""
