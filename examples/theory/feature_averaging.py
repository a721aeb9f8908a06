"""Feature averaging: does a two-layer network learn one cluster per neuron, or their average?

Ten clusters around orthogonal means, five of each label. With binary labels, gradient descent
points each neuron at the average of all clusters of its label, which costs robustness; with cluster
labels each neuron finds a single cluster (Li et al., arXiv 2410.10322). Here the same two networks
are trained with and without the Gini term on the hidden layer, whose classes are the labels in use.

    python examples/theory/feature_averaging.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import arguments, descend, finish
from matplotlib.figure import Figure

from gini_jax.losses import class_sums, gini_loss

CLUSTERS, DIMENSION, EACH, NEURONS, NOISE = 10, 200, 20, 60, 0.3
MEANS = np.linalg.qr(np.random.default_rng(0).normal(size=(DIMENSION, CLUSTERS)))[0].T * 5


def data(seed):
    """Points, the cluster of each, and its binary label."""
    rng, cluster = np.random.default_rng(seed), np.repeat(np.arange(CLUSTERS), EACH)
    return MEANS[cluster] + NOISE * rng.normal(size=(len(cluster), DIMENSION)), cluster, cluster % 2


def network(params, x):
    """Hidden features and logits; the second layer is fixed, one class per neuron."""
    hidden = jax.nn.relu(x @ params["w"] + params["b"])
    return hidden, hidden @ params["heads"] / NEURONS


def trained(classes, weight, seed):
    """A network trained on binary or cluster labels; what it recognises is the binary label."""
    x, cluster, binary = data(seed)
    labels = jnp.array(cluster if classes == CLUSTERS else binary)
    heads = jnp.eye(classes)[jnp.arange(NEURONS) % classes] * classes
    w = 1e-3 * jax.random.normal(jax.random.key(seed), (DIMENSION, NEURONS))

    def loss(free):
        hidden, logits = network(free | {"heads": heads}, jnp.array(x))
        ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return ce + weight * gini_loss(class_sums(hidden, labels, num_classes=classes))

    params, _ = descend(loss, {"w": w, "b": jnp.zeros(NEURONS)}, optax.sgd(0.5), 2000)
    return params | {"heads": heads}


def concentration(params):
    """The share of the strongest cluster in what a neuron sees: 1/5 for averages."""
    cosine = jnp.square(jax.nn.relu(jnp.array(MEANS) @ params["w"]))
    alive = cosine.sum(axis=0) > 0
    return float((cosine.max(axis=0) / jnp.maximum(cosine.sum(axis=0), 1e-9))[alive].mean())


def radius(params, seed):
    """Mean length of the move towards the other label's average that changes the label."""
    x, _, binary = data(seed + 1000)
    away = MEANS[1::2].sum(axis=0) - MEANS[::2].sum(axis=0)
    direction = np.where(binary == 0, 1, -1)[:, None] * away / np.linalg.norm(away)
    lengths = np.linspace(0, 12, 121)

    def predicted(length):
        _, logits = network(params, jnp.array(x + length * direction))
        return logits.argmax(axis=1) % 2  # a cluster's label is its number modulo 2

    wrong = np.stack([predicted(length) != binary for length in lengths])
    first = np.where(wrong.any(axis=0), wrong.argmax(axis=0), len(lengths) - 1)
    return float(lengths[first].mean()), float(1 - wrong[0].mean())


def main():
    """Trains four kinds of network, five seeds each, and draws their neurons."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes, numbers, found = figure.subplots(1, 4), {}, {}
    kinds = [(2, 0.0), (2, 1.0), (CLUSTERS, 0.0), (CLUSTERS, 1.0)]
    for axis, (classes, weight) in zip(axes, kinds, strict=True):
        name = f"{'binary' if classes == 2 else 'cluster'} labels{', Gini term' if weight else ''}"
        nets = [trained(classes, weight, seed) for seed in range(5)]
        single = np.mean([concentration(params) for params in nets])
        moves, accuracies = zip(*(radius(p, s) for s, p in enumerate(nets)), strict=True)
        found[classes, weight] = single, np.mean(moves)
        numbers[f"{name}: share of the strongest cluster"] = float(single)
        numbers[f"{name}: move that changes the label"] = float(np.mean(moves))
        numbers[f"{name}: accuracy"] = float(np.mean(accuracies))
        cosine = np.array(nets[0]["w"]).T @ MEANS.T
        cosine /= np.linalg.norm(cosine, axis=1, keepdims=True) + 1e-9
        axis.imshow(
            cosine[np.lexsort((cosine.argmax(1),))], aspect="auto", cmap="RdBu", clim=(-1, 1)
        )
        axis.set_title(f"{name}\nstrongest {single:.2f}, move {np.mean(moves):.1f}", fontsize=8)
        axis.set_xlabel("cluster")
        axis.grid(visible=False)
    axes[0].set_ylabel("neuron")
    seen = found[2, 0.0][0] < 0.4 < 0.8 < found[CLUSTERS, 0.0][0]
    finish(
        "feature_averaging",
        numbers,
        bool(seen and found[CLUSTERS, 0.0][1] > found[2, 0.0][1]),
        figure,
    )


if __name__ == "__main__":
    arguments(__doc__)
    main()
