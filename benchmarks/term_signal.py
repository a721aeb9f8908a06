"""How much of a term's gradient in a batch is signal: its alignment with the gradient of the truth.

    python benchmarks/term_signal.py --out=results/term_signal.json

Features are drawn: each has a mean for each class, and an example's activation is that of its class
times noise. The gradient of each term with respect to the class means is taken at the means of a
batch and at the true means with equal classes. The figure is the squared cosine between the two,
averaged over batches: 1 if the batch's gradient has the direction of the true one, 0 if it is all
noise. Batches have N examples of K classes, drawn at random; `4 per class` draws N / 4 classes with
four examples each, and `running sums` blends each batch with its history (decay 0.9).
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from gini_jax import losses
from gini_jax.devices import prepare_cpu

_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")
_BATCHES = flags.DEFINE_integer("batches", 60, "Batches of each kind, after 20 of warm-up.")
FEATURES, SPREAD, NOISE = 128, 0.3, 0.8  # number; log-normal spread of the means; of an activation
TERMS: dict[str, Callable[..., jax.Array]] = {
    "gini": losses.gini_loss,
    "renyi": losses.renyi_loss,
    "kl, batch": losses.kl_loss,
    "kl, present": partial(losses.kl_loss, target="present"),
    "mutual_information": losses.mutual_information_loss,
}
KINDS = ("drawn at random", "4 per class", "running sums", "4 per class, running sums")


def gradient(term: str, means: jax.Array, mass: jax.Array) -> jax.Array:
    """The gradient of a term with respect to the class means `[C, K]`, flattened."""

    def value(means: jax.Array) -> jax.Array:
        return TERMS[term](losses.ClassSums(means * mass, mass))

    return jax.grad(value)(means).ravel()


@partial(jax.jit, static_argnames=("term", "num_classes"))
def squared_cosine(
    term: str, means: jax.Array, mass: jax.Array, true: jax.Array, num_classes: int
) -> jax.Array:
    """Between the gradient at a batch's means and that at the true means."""
    ours = gradient(term, means, mass)
    ideal = gradient(term, true, jnp.ones(num_classes))
    return jnp.square(ours @ ideal) / ((ours @ ours) * (ideal @ ideal) + 1e-30)


def alignments(num_classes: int, examples: int, kind: str) -> dict[str, float]:
    """By term, the mean squared cosine over the batches."""
    rng = np.random.default_rng(0)
    true = rng.lognormal(0, SPREAD, (FEATURES, num_classes))
    history: dict[str, np.ndarray] = {}
    found: dict[str, list[float]] = {term: [] for term in TERMS}
    for step in range(20 + _BATCHES.value):
        if kind.startswith("4 per class"):
            classes = min(examples // 4, num_classes)
            labels = np.repeat(rng.permutation(num_classes)[:classes], examples // classes)
        else:
            labels = rng.integers(0, num_classes, examples)
        noise = rng.lognormal(-(NOISE**2) / 2, NOISE, (FEATURES, len(labels)))
        onehot = np.eye(num_classes)[labels]
        new = {"activation": (true[:, labels] * noise) @ onehot, "mass": onehot.sum(axis=0)}
        if kind.endswith("running sums"):
            new = {key: 0.9 * history.get(key, 0.0) + 0.1 * new[key] for key in new}
            history = new
        if step < 20:
            continue
        means = jnp.asarray(new["activation"] / np.maximum(new["mass"], 1e-9))
        mass = jnp.asarray(new["mass"])
        for term in TERMS:
            cosine = squared_cosine(term, means, mass, jnp.asarray(true), num_classes)
            found[term].append(float(cosine))
    return {term: round(float(np.mean(values)), 3) for term, values in found.items()}


def main(argv: list[str]) -> None:
    """Prints a line per setting, and writes the figures."""
    del argv
    prepare_cpu()
    rows: list[dict[str, Any]] = []
    for num_classes in (10, 100):
        for examples in (64, 256, 1024):
            for kind in KINDS:
                row = {"classes": num_classes, "examples": examples, "kind": kind}
                rows.append(row | {"squared_cosine": alignments(num_classes, examples, kind)})
                print(rows[-1], flush=True)
    if _OUT.value:
        about = {"features": FEATURES, "spread": SPREAD, "noise": NOISE}
        with open(_OUT.value, "w") as file:
            json.dump(about | {"batches": _BATCHES.value, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    app.run(main)
