"""Semi-supervised coupled factorisation of digits with two constraints and an enriched prior.

Images X are approximated twice, by a dictionary from the images themselves and by one of its own,
with the same factors: X = X W V' and X = D V' (coupled). Factors of labelled images are pulled to
their class (label constraint), those of neighbours to each other (structure constraint), and
classes that are predicted with confidence join the labelled ones (enriched prior), after Zhang et
al., arXiv 2009.03714. All in plain JAX, trained by Adam. k-means on the factors of all images is
compared with the true classes, by the share of labels, with the Gini and KL terms on the factors
and without.

    python examples/theory/coupled_factorisation.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import COLOURS, arguments, descend, finish
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix, normalized_mutual_info_score
from sklearn.neighbors import kneighbors_graph
from sklearn.preprocessing import normalize

from gini_jax.losses import discriminability_loss

IMAGES, FACTORS, CLASSES, STEPS = 600, 20, 10, 400
SHARES = (0.0, 0.05, 0.1, 0.4)
DIGITS = load_digits()
X, Y = jnp.array(DIGITS.data[:IMAGES] / 16), np.array(DIGITS.target[:IMAGES])
NEAR = kneighbors_graph(np.array(X), 5).toarray()
NEAR = jnp.array((NEAR + NEAR.T) > 0, float)
LAPLACIAN = jnp.diag(NEAR.sum(axis=1)) - NEAR


@partial(jax.jit, static_argnums=0)
def factorised(weight, known, labels, key):
    """Factors, and class probabilities from a linear map of them.

    Args:
        weight: of the terms.
        known: 1 for images whose label counts.
        labels: of all images; those that are not known do not matter.
        key: of the start.
    """
    keys = jax.random.split(key, 4)
    params = {
        "v": 0.1 * jax.random.uniform(keys[0], (IMAGES, FACTORS)),
        "w": jax.random.uniform(keys[1], (IMAGES, FACTORS)) / IMAGES,
        "d": jax.random.uniform(keys[2], (FACTORS, X.shape[1])),
        "map": 0.1 * jax.random.normal(keys[3], (FACTORS, CLASSES)),
    }

    def loss(params):
        v, w, d = (jnp.abs(params[name]) for name in ("v", "w", "d"))
        concepts = v @ (w.T @ X)
        coupled = jnp.square(X - concepts).mean() + jnp.square(X - v @ d).mean()
        likely = jax.nn.log_softmax(v @ params["map"])
        chosen = -jnp.take_along_axis(likely, labels[:, None], axis=1)[:, 0]
        label = (known * chosen).sum() / jnp.maximum(known.sum(), 1)
        structure = (v * (LAPLACIAN @ v)).sum() * 2 / NEAR.sum() / FACTORS
        terms, _ = discriminability_loss(v, labels, num_classes=CLASSES, where=known)
        return 30 * coupled + label + 0.3 * structure + weight * terms * (known.sum() > 0)

    params, _ = descend(loss, params, optax.adam(0.02), STEPS, records=1)
    v = jnp.abs(params["v"])
    return v, jax.nn.softmax(v @ params["map"])


def clustered(weight, share, enrich, seed):
    """Clustering accuracy and NMI of all images."""
    rng = np.random.default_rng(seed)
    known = np.zeros(IMAGES)
    known[rng.permutation(IMAGES)[: round(share * IMAGES)]] = 1
    labels, key = jnp.array(np.where(known, Y, 0)), jax.random.key(seed)
    v, likely = factorised(weight, jnp.array(known), labels, key)
    if enrich and share:
        sure = (np.array(likely).max(axis=1) > 0.9) & (known == 0)
        labels = jnp.where(sure, likely.argmax(axis=1), labels)
        v, _ = factorised(weight, jnp.array(known + sure), labels, key)
    found = KMeans(CLASSES, n_init=10, random_state=seed).fit_predict(normalize(np.array(v)))
    table = confusion_matrix(Y, found)
    rows, columns = linear_sum_assignment(-table)
    return table[rows, columns].sum() / IMAGES, normalized_mutual_info_score(Y, found)


def main():
    """Three draws of the labels for each share."""
    figure, numbers, found = Figure(figsize=(9, 3.4), layout="constrained"), {}, {}
    axes = figure.subplots(1, 2)
    ways = {"label and structure": (0.0, False), "with enriched prior": (0.0, True)}
    ways |= {"with enriched prior, terms": (0.2, True)}
    for colour, (name, (weight, enrich)) in zip(COLOURS, ways.items(), strict=False):
        values = np.array(
            [[clustered(weight, share, enrich, seed) for seed in range(3)] for share in SHARES]
        )
        found[name] = values.mean(axis=1)
        for axis, which in zip(axes, (0, 1), strict=True):
            axis.plot(SHARES, found[name][:, which], "o-", color=colour, label=name)
        for share, (accuracy, nmi) in zip(SHARES, found[name], strict=True):
            numbers[f"{name}: accuracy, labels {share}"] = float(accuracy)
            numbers[f"{name}: NMI, labels {share}"] = float(nmi)
    for axis, text in zip(axes, ("clustering accuracy", "NMI"), strict=True):
        axis.set(xlabel="share of labels", ylabel=text)
    axes[0].legend(fontsize=8)
    rises = found["with enriched prior"][-1, 0] > found["with enriched prior"][0, 0] + 0.05
    gains = found["with enriched prior"][1:, 0].mean() > found["label and structure"][1:, 0].mean()
    finish("coupled_factorisation", numbers, bool(rises and gains), figure)


if __name__ == "__main__":
    arguments(__doc__)
    main()
