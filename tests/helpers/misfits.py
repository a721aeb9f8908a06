"""Parts of a run that break their contract, as a user may write them; see test_misfits.py."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from gini_jax.data.source import Example
from tests.helpers.plugins import Halves, TwoLayers

# ------------------------------------------------------------------------------- networks


class LogitsAlone(TwoLayers):
    def __call__(self, images, train=False, example_index=None):
        return TwoLayers.__call__(self, images, train, example_index)[0]


class NoPooled(nn.Module):
    num_classes: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False, example_index=None):
        x = nn.Dense(4)(images.reshape(len(images), -1))
        return nn.Dense(self.num_classes)(x), {"hidden": x}


class OneClassMore(nn.Module):
    num_classes: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False, example_index=None):
        x = nn.Dense(4)(images.reshape(len(images), -1))
        return nn.Dense(self.num_classes + 1)(x), {"hidden": x, "pooled": x}


class NoExampleIndex(nn.Module):
    num_classes: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(4)(images.reshape(len(images), -1))
        return nn.Dense(self.num_classes)(x), {"hidden": x, "pooled": x}


class NoClasses(nn.Module):
    @nn.compact
    def __call__(self, images, train=False, example_index=None):
        x = nn.Dense(4)(images.reshape(len(images), -1))
        return x, {"hidden": x, "pooled": x}


# ---------------------------------------------------------------------------------- terms


class NoInit:
    def __call__(self, outputs, state):
        return jnp.zeros(()), state


class NeedsAnArgument:
    def __init__(self, strength):
        self.strength = strength

    def init(self, outputs):
        return ()

    def __call__(self, outputs, state):
        return jnp.zeros(()), state


def without_where(features, labels, *, axis_name=None):
    return features.mean()


def without_axis_name(features, labels, *, where=None):
    return features.mean()


def gives_none(features, labels, *, where=None, axis_name=None):
    return None


def gives_two(features, labels, *, where=None, axis_name=None):
    return features.mean(), features.sum()


def gives_a_vector(features, labels, *, where=None, axis_name=None):
    return features.mean(axis=0)


class GivesAVector:
    def init(self, outputs):
        return ()

    def __call__(self, outputs, state):
        return outputs.logits.mean(axis=0), state


# --------------------------------------------------------------- optimisers and schedules


@dataclasses.dataclass(frozen=True)
class NoOptimizer:
    def __call__(self, rate, decay):
        return None


@dataclasses.dataclass(frozen=True)
class NoSchedule:
    waves: int = 2
    extends, rates = True, ()

    def __call__(self, rate, steps):
        return None


# ---------------------------------------------------------------------------- sources


class StringLabels(Halves):
    def __init__(self, config):
        super().__init__(config)
        self.splits = {k: [Example(x.image, "left") for x in v] for k, v in self.splits.items()}


class LateStringLabel(Halves):
    def __init__(self, config):
        super().__init__(config)
        self.splits["train"][7] = Example(self.splits["train"][7].image, "left")


class Generators(Halves):
    def __init__(self, config):
        super().__init__(config)
        self.splits = {name: (x for x in split) for name, split in self.splits.items()}


class PlainTuples(Halves):
    def __init__(self, config):
        super().__init__(config)
        self.splits = {k: [(x.image, x.label) for x in v] for k, v in self.splits.items()}


class EmptyTest(Halves):
    def __init__(self, config):
        super().__init__(config)
        self.splits["test"] = []


class NoNames:
    def __init__(self, config):
        self.splits = {"train": [], "test": []}


class Unmade:
    def __init__(self, config):
        raise KeyError("photos")


class Lost(Halves):
    superclass_names = ("a", "b")


class Torn(Halves):
    superclass_names = ("a", "b")

    def __init__(self, config):
        super().__init__(config)
        for examples in self.splits.values():
            examples[:] = [Example(x.image, x.label, i // 4 % 2) for i, x in enumerate(examples)]


# ------------------------------------------------------------------- evaluations, loggers


class Overwrites:
    KEYS: ClassVar = {"test_accuracy": "another"}

    def evaluate(self, inputs):
        return {"test_accuracy": 1.0}


class Text:
    KEYS: ClassVar = {"test_verdict": "in words"}

    def evaluate(self, inputs):
        return {"test_verdict": "good"}


class Undeclared:
    KEYS: ClassVar = {"mine": "a number"}

    def evaluate(self, inputs):
        return {"mine": 1.0, "another": 2.0}


class ObjectArray:
    KEYS: ClassVar = {"mine": "a number"}

    def evaluate(self, inputs):
        return {"mine": 1.0, "names": np.array([None, "a"], object)}


class Fails:
    KEYS: ClassVar = {"mine": "a number"}

    def evaluate(self, inputs):
        return {"mine": inputs.validation.logits.mean()}


class Plain:
    """No misfit: a class whose `evaluate` takes `self`."""

    KEYS: ClassVar = {"largest": "the largest logit"}

    def evaluate(self, inputs):
        return {"largest": inputs.test.logits.max(), "own/map": np.ones((2, 2))}


class Unclosed:
    def __init__(self, workdir, config):
        pass

    def write(self, line):
        pass

    def draw(self, pictures, step):
        pass


# ---------------------------------------------------- augmentations, step metrics and others


def gives_no_image(key, image, value):
    return None


def another_shape(key, image, value):
    return image[:4]


def asks_for_a_number(key, image, value):
    return image if image.mean() > 0.5 else 1 - image


def one_number(outputs):
    return outputs.logits.mean()


def in_words(outputs):
    return "good"


@dataclasses.dataclass(frozen=True)
class Falling:
    waves: int = 2
    extends, rates = True, ()

    def __call__(self, rate, steps):
        return lambda step: -rate


@dataclasses.dataclass(frozen=True)
class SameSetting:
    learning_rate: float = 3.0
    extends, rates = True, ()

    def __call__(self, rate, steps):
        return lambda step: self.learning_rate


@dataclasses.dataclass(frozen=True)
class Raises:
    def __call__(self, rate, decay):
        raise KeyError("momentum")


class NumberedClasses(Halves):
    class_names = (0, 1)


class NoShape(Halves):
    image_shape = None


class NoJson(Halves):
    def fingerprint(self, split):
        return {split}


class KeysInAText:
    KEYS = "mine"

    def evaluate(self, inputs):
        return {}


class Forgets:
    KEYS: ClassVar = {"mine": "a number", "yours": "another"}

    def evaluate(self, inputs):
        return {"mine": 1.0}
