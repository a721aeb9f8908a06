"""Convergence and width: gradient descent fits any labels if the hidden layer is wide enough.

Two-layer ReLU networks, both layers trained at their own rates on Gaussian inputs with random
labels, which stand for adversarial ones, by gradient descent on the quadratic loss (Razborov, arXiv
2212.02323). Narrow networks get stuck; wide ones reach zero. The experiment is repeated with the
terms on the hidden layer, whose classes are the signs of the labels.

    python examples/theory/convergence_width.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import COLOURS, arguments, descend, finish
from matplotlib.figure import Figure

from gini_jax.losses import discriminability_loss

INPUTS, EXAMPLES, STEPS, RECORDS = 30, 150, 6000, 50
WIDTHS = (4, 8, 16, 32, 64, 128, 256, 512)
RATES = {"hidden": 2.0, "output": 1.0}


def train(width, weight, key):
    """Quadratic loss over training."""
    keys = jax.random.split(key, 4)
    x = jax.random.normal(keys[0], (EXAMPLES, INPUTS)) / INPUTS**0.5
    y = jax.random.rademacher(keys[1], (EXAMPLES,), float)
    params = {
        "hidden": jax.random.normal(keys[2], (INPUTS, width)),
        "output": jax.random.normal(keys[3], (width,)),
    }

    def quadratic(params):
        value = jax.nn.relu(x @ params["hidden"]) @ params["output"] / width**0.5
        return 0.5 * jnp.square(value - y).mean()

    def loss(params):
        hidden = jax.nn.relu(x @ params["hidden"])
        terms, _ = discriminability_loss(hidden, (y > 0).astype(int), num_classes=2)
        return quadratic(params) + weight * terms

    rates = {name: optax.sgd(rate) for name, rate in RATES.items()}
    optimizer = optax.multi_transform(rates, {name: name for name in RATES})
    return descend(loss, params, optimizer, STEPS, quadratic, RECORDS)[1]


def main():
    """Five seeds of each width, with and without the terms."""
    figure, numbers = Figure(figsize=(9, 3.4), layout="constrained"), {}
    left, right = figure.subplots(1, 2)
    for colour, weight in zip(COLOURS, (0.0, 0.05), strict=False):
        name = "terms, weight 0.05" if weight else "quadratic loss alone"
        keys = jax.random.split(jax.random.key(0), 5)
        losses = np.array([jax.vmap(partial(train, w, weight))(keys) for w in WIDTHS])
        last = losses[:, :, -1].mean(axis=1)
        right.plot(WIDTHS, last, "o-", color=colour, label=name)
        numbers |= {
            f"{name}: loss at width {w}": float(x) for w, x in zip(WIDTHS, last, strict=True)
        }
        if not weight:
            falls = bool(last[-1] < 1e-2 * last[0] and last[0] > 0.01)
            for i in range(0, len(WIDTHS), 2):
                mean = losses[i].mean(axis=0)
                left.plot(np.arange(RECORDS) * STEPS // RECORDS, mean, label=f"width {WIDTHS[i]}")
    left.set_xlabel("step")
    left.set_ylabel("quadratic loss")
    right.set_xlabel("width")
    right.set_ylabel(f"quadratic loss after {STEPS} steps")
    right.set_xscale("log", base=2)
    for axis in (left, right):
        axis.set_yscale("log")
        axis.legend(fontsize=8)
    finish("convergence_width", numbers, falls, figure)


if __name__ == "__main__":
    arguments(__doc__)
    main()
