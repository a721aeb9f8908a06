"""Contrastive learning on a latent tree: what a covariance operator does to a two-layer network.

A root z0 = -1 or 1 passes its sign to 10 latent variables, and each of these to 5 visible ones, as
noisy copies; each visible variable is shown as one of two random vectors. Two views share root and
latents and draw the visible ones anew. Contrastive learning amplifies what the views share: the
first step of a neuron's weights is that of the covariance operator, and hidden units come to follow
single latents (Tian et al., arXiv 2010.00578, section 5). nt_xent is this project's; the Gini and
KL terms, with the root as class, act on the hidden layer.

    python examples/theory/latent_tree.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import COLOURS, arguments, descend, finish
from matplotlib.figure import Figure

from gini_jax.losses import discriminability_loss, nt_xent_loss

LATENTS, LEAVES, TOKEN, HIDDEN, OUT, BATCH, STEPS = 10, 5, 8, 80, 32, 128, 1500
KEEPS = 0.6  # correlation of a variable with its parent
TOKENS = jnp.array(np.random.default_rng(0).normal(size=(LATENTS * LEAVES, 2, TOKEN)) / TOKEN**0.5)


def copy(key, parent):
    """A noisy copy."""
    return jnp.where(jax.random.bernoulli(key, (1 + KEEPS) / 2, parent.shape), parent, -parent)


def tree(key, count):
    """Roots `[N]` and latents `[N, LATENTS]`, each -1 or 1."""
    root_key, latent_key = jax.random.split(key)
    root = jax.random.rademacher(root_key, (count,))
    return root, copy(latent_key, jnp.repeat(root[:, None], LATENTS, axis=1))


def view(key, latents):
    """The vectors of the visible variables, by latent: `[N, LATENTS, LEAVES * TOKEN]`."""
    visible = copy(key, jnp.repeat(latents, LEAVES, axis=1))
    shown = TOKENS[jnp.arange(LATENTS * LEAVES), (visible > 0).astype(int)]
    return shown.reshape(len(latents), LATENTS, -1)


def network(params, x):
    """Hidden units, eight for each latent's visible variables, and the representation."""
    hidden = jax.nn.relu(jnp.einsum("nli,lij->nlj", x, params["w"])).reshape(len(x), HIDDEN)
    return hidden, hidden @ params["v"]


def correlation(params, key):
    """How well hidden units follow the latent that they see: the mean absolute correlation."""
    _, latents = tree(key, 4000)
    hidden = network(params, view(jax.random.fold_in(key, 1), latents))[0]
    hidden = hidden.reshape(4000, LATENTS, -1)
    x = (hidden - hidden.mean(axis=0)) / (hidden.std(axis=0) + 1e-6)
    z = (latents - latents.mean(axis=0)) / latents.std(axis=0)
    return jnp.abs((x * z[..., None]).mean(axis=0)).mean()


def loss(weight, params, key):
    """NT-Xent of two views, and the terms."""
    keys = jax.random.split(key, 3)
    root, latents = tree(keys[0], BATCH)
    hidden, out = network(params, jnp.concatenate([view(k, latents) for k in keys[1:]]))
    positives = nt_xent_loss(out[:BATCH], out[BATCH:], temperature=0.5)
    labels = jnp.tile((root > 0).astype(int), 2)
    return positives + weight * discriminability_loss(hidden, labels, num_classes=2)[0]


@partial(jax.jit, static_argnums=0)
@partial(jax.vmap, in_axes=(None, 0))
def train(weight, key):
    """Correlations over training, and the cosine of the first step with the operator's."""
    keys = jax.random.split(key, 4)
    params = {
        "w": jax.random.normal(keys[0], (LATENTS, LEAVES * TOKEN, HIDDEN // LATENTS)) / 6,
        "v": jax.random.normal(keys[1], (HIDDEN, OUT)) / HIDDEN**0.5,
    }
    first = jax.tree.map(jnp.negative, jax.grad(partial(loss, 0.0))(params, keys[2]))["w"]
    # The operator: covariance, over trees, of the mean view, through the gates and the layer above.
    _, latents = tree(keys[3], 2000)
    views = [view(jax.random.fold_in(keys[3], i), latents) for i in range(8)]
    gates = [(jnp.einsum("nli,lij->nlj", x, params["w"]) > 0).astype(float) for x in views]
    mean = sum(x[..., None] * g[:, :, None] for x, g in zip(views, gates, strict=True)) / 8
    mean = mean - mean.mean(axis=0)  # [N, LATENTS, inputs, units]
    above = params["v"].reshape(LATENTS, -1, OUT)
    out = jnp.einsum("nliu,liu,luo->no", mean, params["w"], above)
    pushed = jnp.einsum("nliu,no,luo->liu", mean, out, above)
    cosine = (first * pushed).sum() / jnp.linalg.norm(first) / jnp.linalg.norm(pushed)
    measure, objective = partial(correlation, key=keys[3]), partial(loss, weight)
    params, curve = descend(objective, params, optax.adam(3e-3), STEPS, measure, 25, keys[2])
    return jnp.append(curve, measure(params)), cosine


def main():
    """Five seeds with and without the terms."""
    figure, numbers = Figure(figsize=(6, 3.4), layout="constrained"), {}
    axis, keys = figure.subplots(), jax.random.split(jax.random.key(0), 5)
    for colour, weight in zip(COLOURS, (0.0, 0.5), strict=False):
        name = "NT-Xent, terms" if weight else "NT-Xent"
        curves, cosines = map(np.array, train(weight, keys))
        axis.plot(np.linspace(0, STEPS, 26), curves.mean(axis=0), color=colour, label=name)
        numbers[f"{name}: correlation with the latents before"] = float(curves[:, 0].mean())
        numbers[f"{name}: correlation with the latents after"] = float(curves[:, -1].mean())
        if not weight:
            numbers["cosine of the first step with the operator's"] = float(cosines.mean())
            rises = curves[:, -1] - curves[:, 0]
    axis.set(xlabel="step", ylabel="correlation of units with their latent")
    axis.legend(fontsize=8)
    up = rises.mean() > 2 * rises.std(ddof=1) / len(rises) ** 0.5
    finish("latent_tree", numbers, bool(up and cosines.mean() > 0.3), figure)


if __name__ == "__main__":
    arguments(__doc__)
    main()
