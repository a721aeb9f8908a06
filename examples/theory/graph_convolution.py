"""Graphs: the losses on the features of nodes, with and without graph convolution.

A contextual stochastic block model: nodes of two communities carry the signal y * mu in a few of
many dimensions, and edges are likelier within a community. A two-layer network on single nodes
memorises the noise; with one graph convolution it learns the signal and generalises where the other
cannot (Huang et al., arXiv 2306.13926). The terms act on the hidden layer of the labelled nodes.

    python examples/theory/graph_convolution.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import COLOURS, arguments, descend, finish
from matplotlib.figure import Figure

from gini_jax.losses import class_sums, discriminability_loss, gini_loss

NODES, LABELLED, INPUTS, NEURONS, STEPS = 600, 100, 400, 32, 400
INSIDE, OUTSIDE = 0.05, 0.01  # probabilities of an edge
SIGNALS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
WAYS = {"nodes": (False, 0.0), "graph": (True, 0.0)}
WAYS |= {"nodes, terms": (False, 0.5), "graph, terms": (True, 0.5)}


def graph(signal, seed):
    """Features, labels 0 or 1, and the normalised adjacency with self-loops."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, NODES)
    mean = np.zeros(INPUTS)
    mean[:4] = signal / 2
    x = np.where(y, 1, -1)[:, None] * mean + rng.normal(size=(NODES, INPUTS)) / 4
    likely = np.where(y[:, None] == y[None], INSIDE, OUTSIDE)
    upper = np.triu(rng.random((NODES, NODES)) < likely, 1)
    adjacency = upper + upper.T + np.eye(NODES)
    return jnp.array(x), jnp.array(y), jnp.array(adjacency / adjacency.sum(axis=1, keepdims=True))


@partial(jax.jit, static_argnums=(0, 1))
@partial(jax.vmap, in_axes=(None, None, 0, 0, 0, 0))
def train(convolve, weight, x, y, adjacency, key):
    """Test accuracy and the Gini impurity of the hidden layer on unlabelled nodes."""
    inputs = adjacency @ x if convolve else x
    keys = jax.random.split(key)
    params = {
        "w": 0.01 * jax.random.normal(keys[0], (INPUTS, NEURONS)),
        "v": 0.1 * jax.random.normal(keys[1], (NEURONS, 2)),
    }
    seen, rest = slice(LABELLED), slice(LABELLED, None)

    def loss(params):
        hidden = jax.nn.relu(inputs[seen] @ params["w"])
        ce = optax.softmax_cross_entropy_with_integer_labels(hidden @ params["v"], y[seen]).mean()
        return ce + weight * discriminability_loss(hidden, y[seen], num_classes=2)[0]

    params, _ = descend(loss, params, optax.adam(0.01), STEPS)
    hidden = jax.nn.relu(inputs @ params["w"])
    accuracy = ((hidden @ params["v"]).argmax(axis=1) == y)[rest].mean()
    return accuracy, gini_loss(class_sums(hidden[rest], y[rest], num_classes=2))


def main():
    """Five graphs for each strength of the signal."""
    figure, numbers, found = Figure(figsize=(9, 3.4), layout="constrained"), {}, {}
    axes = figure.subplots(1, 2)
    keys = jax.random.split(jax.random.key(0), 5)
    drawn = [
        [jnp.stack(x) for x in zip(*(graph(s, seed) for seed in range(5)), strict=True)]
        for s in SIGNALS
    ]
    for colour, (name, (convolve, weight)) in zip(COLOURS, WAYS.items(), strict=True):
        values = np.array([train(convolve, weight, *graphs, keys) for graphs in drawn])
        found[name] = values.mean(axis=2)
        for axis, which in zip(axes, (0, 1), strict=True):
            axis.plot(SIGNALS, found[name][:, which], "o-", color=colour, label=name)
        for signal, (accuracy, gini) in zip(SIGNALS, found[name], strict=True):
            numbers[f"{name}: accuracy, signal {signal}"] = float(accuracy)
            numbers[f"{name}: impurity, signal {signal}"] = float(gini)
    axes[0].set_ylabel("accuracy on unlabelled nodes")
    axes[1].set_ylabel("Gini impurity of the hidden layer")
    axes[0].legend(fontsize=8)
    for axis in axes:
        axis.set_xlabel("strength of the signal")
    gain = found["graph"][:, 0] - found["nodes"][:, 0]
    numbers["largest gain by graph convolution"] = float(gain.max())
    finish("graph_convolution", numbers, bool(gain.max() > 0.1), figure)


if __name__ == "__main__":
    arguments(__doc__)
    main()
