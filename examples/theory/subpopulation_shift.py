"""Subpopulation shift: conditional training on super- and subclasses against a flat classifier.

Six superclasses of ten subclasses each, around centres on two levels; four subclasses of each are
never trained on. The flat classifier learns the subclasses as equals; the superclass of the one
that it names counts. The conditional one learns superclasses on its first layer, and from the layer
above, the subclass where the superclass is given (Mukherjee et al., arXiv 2112.10844, section 3).
Both name the superclass of points of the unseen subclasses, as the subclasses move apart.

    python examples/theory/subpopulation_shift.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import COLOURS, arguments, descend, finish
from matplotlib.figure import Figure

from gini_jax.losses import discriminability_loss

SUPER, SUB, UNSEEN, INPUTS, WIDTH, EACH, STEPS = 6, 10, 4, 64, 64, 12, 300
# Distances of subclasses from the centre of their superclass.
SPREADS = (1.0, 1.4, 1.8, 2.2, 2.6, 3.0)
WAYS = {"flat": (False, 0.0), "conditional": (True, 0.0)}
WAYS |= {"flat, terms": (False, 0.3), "conditional, terms": (True, 0.3)}


def data(spread, seed):
    """Training and shifted test points with their classes."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(SUPER, 1, INPUTS)) * 0.35
    means = centres + spread * 0.35 * rng.normal(size=(SUPER, SUB, INPUTS))
    x = means[:, :, None] + 0.5 * rng.normal(size=(SUPER, SUB, EACH, INPUTS))
    above = np.broadcast_to(np.arange(SUPER)[:, None, None], x.shape[:3])
    below = np.broadcast_to(np.arange(SUB)[None, :, None], x.shape[:3])
    seen = np.s_[:, : SUB - UNSEEN]
    unseen = np.s_[:, SUB - UNSEEN :]
    flat = [v[seen].reshape(-1, *v.shape[3:]) for v in (x, above, below)]
    return [jnp.array(v) for v in (*flat, x[unseen].reshape(-1, INPUTS), above[unseen].ravel())]


@partial(jax.jit, static_argnums=(0, 1))
@partial(jax.vmap, in_axes=(None, None, 0, 0, 0, 0, 0, 0))
def train(conditional, weight, x, above, below, shifted, expected, key):
    """Accuracy over superclasses, on unseen subclasses and on those of training."""
    keys = jax.random.split(key, 4)
    params = {
        "w": jax.random.normal(keys[0], (INPUTS, WIDTH)) * (2 / INPUTS) ** 0.5,
        "super": jax.random.normal(keys[1], (WIDTH, SUPER)) / WIDTH**0.5,
        "u": jax.random.normal(keys[2], (WIDTH, WIDTH)) * (2 / WIDTH) ** 0.5,
        "sub": jax.random.normal(keys[3], (SUPER, WIDTH, SUB)) / WIDTH**0.5,
    }

    def logits(params, points):
        """Of superclasses, and of the subclasses of each, from one layer further up."""
        hidden = jax.nn.relu(points @ params["w"])
        below = jnp.einsum("nc,sck->nsk", jax.nn.relu(hidden @ params["u"]), params["sub"])
        return hidden, hidden @ params["super"], below[..., : SUB - UNSEEN]

    def loss(params):
        hidden, upper, lower = logits(params, x)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        if conditional:  # the superclass, and the subclass where the superclass is given
            total = cross_entropy(upper, above) + cross_entropy(
                lower[jnp.arange(len(x)), above], below
            )
        else:  # one of all subclasses
            total = cross_entropy(lower.reshape(len(x), -1), above * (SUB - UNSEEN) + below)
        terms, _ = discriminability_loss(hidden, above, num_classes=SUPER)
        return total.mean() + weight * terms

    params, _ = descend(loss, params, optax.adamw(3e-3, weight_decay=1e-3), STEPS)

    def accuracy(points, classes):
        _, upper, lower = logits(params, points)
        named = upper.argmax(axis=1) if conditional else lower.max(axis=2).argmax(axis=1)
        return (named == classes).mean()

    return accuracy(shifted, expected), accuracy(x, above)


def main():
    """Ten draws of the data for each spread."""
    figure, numbers, found = Figure(figsize=(6, 3.6), layout="constrained"), {}, {}
    axis, keys = figure.subplots(), jax.random.split(jax.random.key(0), 10)
    sets = [
        [jnp.stack(v) for v in zip(*(data(s, seed) for seed in range(10)), strict=True)]
        for s in SPREADS
    ]
    for colour, (name, (conditional, weight)) in zip(COLOURS, WAYS.items(), strict=True):
        values = np.array([train(conditional, weight, *drawn, keys)[0] for drawn in sets])
        found[name] = values
        axis.errorbar(
            SPREADS,
            values.mean(axis=1),
            values.std(axis=1, ddof=1) / 10**0.5,
            color=colour,
            label=name,
            capsize=2,
        )
        for spread, x in zip(SPREADS, values.mean(axis=1), strict=True):
            numbers[f"{name}: accuracy on unseen subclasses, spread {spread}"] = float(x)
    gain = found["conditional"] - found["flat"]
    numbers["conditional less flat, all spreads"] = float(gain.mean())
    error = gain.mean(axis=0).std(ddof=1) / 10**0.5
    numbers["standard error over the draws"] = float(error)
    axis.set_xlabel("spread of the subclasses")
    axis.set_ylabel("accuracy on unseen subclasses")
    axis.legend(fontsize=8)
    finish("subpopulation_shift", numbers, bool(gain.mean() > 2 * error), figure)


if __name__ == "__main__":
    arguments(__doc__)
    main()
