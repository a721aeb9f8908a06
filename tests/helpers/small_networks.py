"""Small networks without batch norm, in runs of one step."""

import flax.linen as nn
import jax
import numpy as np

from gini_jax.config.change import changed
from gini_jax.data import load_dataset
from gini_jax.data.source import Split
from gini_jax.models.layers import Classifier, Dropout
from gini_jax.models.registry import model_settings
from gini_jax.training.step import augmented_batch
from tests.helpers import tiny
from tests.helpers.runs import set_up


class Headed(nn.Module):
    """Without batch norm, so that parts of a batch do not depend on each other."""

    head: str = "linear"
    scale: float = 16.0

    @nn.compact
    def __call__(self, images, train=False, example_index=None):
        features = nn.silu(nn.Dense(32, name="body")(images.reshape(len(images), -1)))
        features = self.perturb("stage2", features)
        head = Classifier(10, 0.0, self.head, self.scale, name="head")
        return head(features, train=train, example_index=example_index), {"stage2": features}


def started_config(objective, **changes):
    config = tiny.get_config(objective)
    config.loss.start_epoch = 1
    config.schedule.warmup_epochs = 0.0  # else the first step does not move
    changed(config, changes)
    return config


def headed(config, num_devices=1, **options):
    """A run of the small network above, with the head that the objective needs."""
    head = model_settings(config)["head"]
    return set_up(config, num_devices, model=Headed(head), **options)


def seen(run, images, labels):
    """The batch that a run's first step sees, and its outputs before the step."""
    state = jax.tree.map(lambda x: x[0], run.state) if run.state.step.ndim else run.state
    state = jax.device_get(state)
    batch = augmented_batch(state, Split(images, labels), run.experiment)
    logits, features = run.experiment.model.apply(state.variables, batch.images)
    return state, batch, logits, features["stage2"]


def first_batch(run, config):
    data = load_dataset(config.dataset).splits["train"]
    order = np.asarray(run.order).reshape(-1, np.asarray(run.order).shape[-2], config.batch_size)
    rows = order[0, 0]
    return data.images[rows], data.labels[rows]


class LayerDrops(nn.Module):
    """Dropout or stochastic depth and the classifier's own, without batch norm."""

    broadcast: bool

    @nn.compact
    def __call__(self, images, train=False, example_index=None):
        x = nn.silu(nn.Dense(32)(images.reshape(len(images), -1)))
        x = x + Dropout(0.5, broadcast=self.broadcast)(nn.Dense(32)(x), example_index, train=train)
        x = self.perturb("pooled", x)
        return Classifier(10, 0.4)(x, train=train, example_index=example_index), {"pooled": x}
