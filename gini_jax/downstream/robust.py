"""Robustness: accuracy on images that an attack changes, within a bound, to mislead the network.

FGSM takes one step, as large as the bound, along the sign of the gradient (Goodfellow et al., arXiv
1412.6572). PGD takes 20 steps of an eighth of the bound from a random start, each followed by a
projection, in the maximum norm and in the Euclidean norm (Madry et al., arXiv 1706.06083). Both
maximise the largest logit of a wrong class minus that of the true class. The gradient of this
margin does not vanish where the network is confident (Carlini and Wagner, arXiv 1608.04644,
equation 6). Pixels are in [0, 1]. 500 test images are used.
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from gini_jax.devices import cpu_options
from gini_jax.downstream.subject import Subject, classes_of
from gini_jax.drawing import COLOURS, mean_and_range

MOST, BATCH, STEPS = 500, 100, 20
BOUNDS = {
    "linf": np.array([0, 1, 2, 4, 8, 16, 32]) / 255,
    "l2": np.array([0, 0.125, 0.25, 0.5, 1.0, 2.0]),
}
ATTACKS = {"fgsm": ("linf", 1), "pgd_linf": ("linf", STEPS), "pgd_l2": ("l2", STEPS)}
KEYS = {
    "robust_fgsm": ("Accuracy under FGSM, 4/255", True),
    "robust_pgd_linf": ("Accuracy under PGD, 4/255 in the maximum norm", True),
    "robust_pgd_l2": ("Accuracy under PGD, 0.5 in the Euclidean norm", True),
}
AT = {"linf": 4 / 255, "l2": 0.5}


def measure(subject: Subject) -> dict[str, Any]:
    """Accuracies by bound, `robust/ATTACK`, and those of `KEYS`."""
    images, labels = subject.test_images(MOST)
    variables = subject.trained.variables
    found: dict[str, Any] = {}
    for name, (norm, steps) in ATTACKS.items():
        bounds = BOUNDS[norm]
        found[f"robust/{name}"] = under_attack(
            subject.network, variables, images, labels, norm, steps, bounds
        )
        found[f"robust_{name}"] = float(found[f"robust/{name}"][bounds == AT[norm]][0])
    return found


Logits = Any  # a function of a network's variables and of images in [0, 1]


def under_attack(
    logits: Logits,
    variables: Any,
    images: Float[np.ndarray, "N h w 3"],
    labels: Int[np.ndarray, " N"],
    norm: str,
    steps: int,
    bounds: Sequence[float] | np.ndarray,
) -> Float[np.ndarray, " B"]:
    """Accuracy for each bound; an image misclassified within a smaller bound stays misclassified.

    Args:
        logits: a function of variables and of images in `[0, 1]`.
        variables: the network's.
        images: to attack.
        labels: their classes.
        norm: `linf` or `l2`.
        steps: 1 is FGSM.
        bounds: the largest norms of the change, in increasing order; 0 means no change.
    """
    attack, predicted = _compiled(logits, norm, steps), classes_of(logits)
    left, right = np.arange(len(labels)), []  # left: images not yet misclassified
    for bound in bounds:
        kept = []
        for start in range(0, len(left), BATCH):
            rows = np.resize(left[start : start + BATCH], min(BATCH, len(labels)))  # one shape
            x, y = jnp.asarray(images[rows]), jnp.asarray(labels[rows])
            if bound:
                x = attack(variables, x, y, bound, jax.random.key(start))
            good = np.asarray(predicted(variables, x) == y)[: len(left) - start]
            kept.append(rows[: len(good)][good])
        left = np.concatenate([*kept, left[:0]])
        right.append(len(left) / len(labels))
    return np.array(right)


@cache
def _compiled(logits: Logits, norm: str, steps: int) -> Any:
    attack = partial(attacked, logits, norm=norm, steps=steps)
    return jax.jit(attack, compiler_options=cpu_options())


def attacked(
    logits: Logits,
    variables: Any,
    images: Float[Array, "N h w 3"],
    labels: Int[Array, " N"],
    bound: float | Array,
    key: Array,
    *,
    norm: str,
    steps: int,
) -> Float[Array, "N h w 3"]:
    """Images changed by at most `bound`, within `[0, 1]`; see `under_attack`."""

    def harm(x: Array) -> Array:
        found = logits(variables, x)
        true = jnp.take_along_axis(found, labels[:, None], axis=1)[:, 0]
        others = jnp.where(jax.nn.one_hot(labels, found.shape[1]) > 0, -jnp.inf, found)
        return (others.max(axis=1) - true).sum()

    def projected(change: Array) -> Array:
        if norm == "linf":
            return jnp.clip(change, -bound, bound)
        return change * jnp.minimum(1, bound / jnp.maximum(_length(change), 1e-12))

    def direction(gradient: Array) -> Array:
        if norm == "linf":
            return jnp.sign(gradient)
        return gradient / jnp.maximum(_length(gradient), 1e-12)

    def step(_: Any, change: Array) -> Array:
        gradient = jax.grad(harm)(images + change)
        size = bound if steps == 1 else 2.5 * bound / steps
        change = projected(change + size * direction(gradient))
        return jnp.clip(images + change, 0, 1) - images

    first = jnp.zeros_like(images)
    if steps > 1:
        first = projected(bound * jax.random.uniform(key, images.shape, minval=-1))
        first = jnp.clip(images + first, 0, 1) - images
    return images + lax.fori_loop(0, steps, step, first)


def _length(x: Array) -> Array:
    return jnp.sqrt(jnp.square(x).sum(axis=(1, 2, 3), keepdims=True))


def draw(arrays: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> Figure:
    """Accuracy by bound, one panel for each norm."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axis, norm in zip(figure.subplots(1, 2), BOUNDS, strict=True):
        for colour, (group, runs) in zip(cycle(COLOURS), arrays.items(), strict=False):
            for name, (own, steps) in ATTACKS.items():
                if own == norm:
                    values = np.array([run[f"robust/{name}"] for run in runs])
                    style = ":" if steps == 1 else "-"
                    label = None if steps == 1 else group
                    mean_and_range(axis, BOUNDS[norm], values, colour, label, style)
        title = (
            "maximum norm; dotted: FGSM, solid: PGD" if norm == "linf" else "Euclidean norm, PGD"
        )
        axis.set_title(title)
        axis.set_xlabel("largest change of an image, pixels in [0, 1]")
        axis.set_ylabel("accuracy")
        axis.set_ylim(bottom=0)
        axis.grid()
    figure.axes[0].legend(fontsize=8)
    return figure
