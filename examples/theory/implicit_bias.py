"""Implicit bias: a wide two-layer network under logistic loss finds few directions that separate.

Labels depend on 2 of 10 inputs, in a pattern of 3 x 3 clusters. Trained in both layers, the network
approaches a maximum margin whose norm adapts to the hidden plane; trained in its output layer
alone, it is a kernel method, which does not (Chizat and Bach, arXiv 2002.04486, section 5). The
margin of the normalised network, min y f(x) / |parameters|^2, rises during training. Both are
repeated with the Gini and KL terms on the hidden layer.

    python examples/theory/implicit_bias.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import COLOURS, arguments, descend, finish
from matplotlib.figure import Figure

from gini_jax.losses import discriminability_loss

INPUTS, NEURONS, TRAIN, STEPS, RECORDS = 10, 300, 512, 10_000, 50
WAYS = {"both layers": (True, 0.0), "output layer": (False, 0.0)}
WAYS |= {"both layers, terms": (True, 0.05), "output layer, terms": (False, 0.05)}


def data(count, seed):
    """Points in 10 dimensions and labels -1 or 1, by the cell of the first two coordinates."""
    rng = np.random.default_rng(seed)
    cell = rng.integers(0, 3, (count, 2))
    x = rng.uniform(-0.5, 0.5, (count, INPUTS))
    x[:, :2] = cell - 1 + 0.35 * (2 * rng.random((count, 2)) - 1)
    return jnp.array(np.c_[x, np.ones(count)]), jnp.array(np.where(cell.sum(axis=1) % 2, 1.0, -1.0))


def output(params, x):
    """Hidden features, and the network's value, which is homogeneous of degree 2."""
    hidden = jax.nn.relu(x @ params["w"])
    return hidden, hidden @ params["a"] / NEURONS


def train(both, weight, train, test, key):
    """The normalised margin and the test error over training."""
    (x, y), (x_test, y_test) = train, test
    first = jax.random.normal(key, (INPUTS + 1, NEURONS))
    first /= jnp.linalg.norm(first, axis=0)
    signs = jnp.where(jnp.arange(NEURONS) % 2, 1.0, -1.0)

    def network(free):
        return free if both else free | {"w": first}

    def loss(free):
        hidden, value = output(network(free), x)
        terms, _ = discriminability_loss(hidden, (y > 0).astype(int), num_classes=2)
        return jnp.logaddexp(0, -y * value).mean() + weight * terms

    def measure(free):
        params = network(free)
        size = sum(jnp.square(p).sum() for p in jax.tree.leaves(params)) / NEURONS
        margin = (y * output(params, x)[1]).min() / size
        return margin, (y_test * output(params, x_test)[1] <= 0).mean()

    start = {"w": first, "a": signs} if both else {"a": 0 * signs}
    # The scale of the neurons' gradients is 1 / NEURONS; Adam does without it.
    return descend(loss, start, optax.adam(3e-3), STEPS, measure, RECORDS)[1]


def main():
    """Three draws for each way; draws margin and error over training."""
    figure, numbers, last = Figure(figsize=(9, 3.4), layout="constrained"), {}, {}
    axes = figure.subplots(1, 2)
    steps = np.arange(RECORDS) * (STEPS // RECORDS)
    several = [
        jax.tree.map(lambda *x: jnp.stack(x), *(data(n, first + seed) for seed in range(3)))
        for n, first in ((TRAIN, 0), (4000, 100))
    ]
    drawn = (*several, jax.random.split(jax.random.key(0), 3))
    for colour, (name, (both, weight)) in zip(COLOURS, WAYS.items(), strict=True):
        curves = np.stack(jax.vmap(partial(train, both, weight))(*drawn), axis=1)
        for axis, which in zip(axes, (0, 1), strict=True):
            axis.plot(steps, curves[:, which].mean(axis=0), color=colour, label=name)
        last[name] = curves[:, :, -1].mean(axis=0)
        numbers[f"{name}: normalised margin"] = float(last[name][0])
        numbers[f"{name}: test error"] = float(last[name][1])
        numbers[f"{name}: rise of the margin over the last half"] = float(
            (curves[:, 0, -1] - curves[:, 0, RECORDS // 2]).mean()
        )
    axes[0].set_ylabel("normalised margin")
    axes[1].set_ylabel("test error")
    axes[1].legend(fontsize=8)
    for axis in axes:
        axis.set_xlabel("step")
    better = last["both layers"][1] < 0.7 * last["output layer"][1]
    rises = numbers["both layers: rise of the margin over the last half"] > 0
    finish("implicit_bias", numbers, bool(better and rises), figure)


if __name__ == "__main__":
    arguments(__doc__)
    main()
