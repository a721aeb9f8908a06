"""Relation GAN: a discriminator of pairs, trained by triplets, against the usual one, on digits.

The usual discriminator tells real images from generated ones (non-saturating loss). The relation
discriminator scores pairs: two real images should be closer than a real and a generated one, by a
triplet loss with a margin; the generator makes the two kinds of pair alike (Wu et al., arXiv
2002.10174, section 3). Small networks on the 8x8 digits; the distance is Frechet's, between
Gaussians fitted to the features that a classifier has of real and of generated images.

    python examples/theory/relation_gan.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import COLOURS, arguments, descend, finish, layers, run
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

NOISE, WIDTH, BATCH, STEPS, RECORDS = 16, 128, 64, 6000, 40
DIGITS = load_digits()
REAL, LABELS = jnp.array(DIGITS.data / 8 - 1), jnp.array(DIGITS.target)


def classification(params):
    """Cross-entropy of the network whose 32 hidden features measure the distance."""
    logits = run(params, REAL)[1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def frechet(a, b):
    """Distance of the Gaussians fitted to two sets of features."""
    first, second = ((x - x.mean(axis=0)) / len(x) ** 0.5 for x in (a, b))
    factors = jnp.linalg.qr(first)[1] @ jnp.linalg.qr(second)[1].T
    spread = jnp.square(first).sum() + jnp.square(second).sum()
    both = jnp.linalg.svd(factors, compute_uv=False).sum()  # trace of the root of the product
    return jnp.square(a.mean(axis=0) - b.mean(axis=0)).sum() + spread - 2 * both


def generated(params, key, count):
    """Images in [-1, 1]."""
    return jnp.tanh(run(params, jax.random.normal(key, (count, NOISE)))[1])


def usual(discriminator, real, fake):
    """Non-saturating losses of the discriminator and of the generator."""
    on_real, on_fake = run(discriminator, real)[1], run(discriminator, fake)[1]
    told = jax.nn.softplus(-on_real).mean() + jax.nn.softplus(on_fake).mean()
    return told, jax.nn.softplus(-on_fake).mean()


def relation(discriminator, real, fake, margin=1.0):
    """Triplet losses on the relation of pairs: the anchor is real."""
    alike, different = (
        run(discriminator, jnp.concatenate([real, other], axis=1))[1]
        for other in (jnp.roll(real, 1, axis=0), fake)
    )
    triplets = jax.nn.relu(alike - different + margin).mean()
    return triplets, jax.nn.relu(different - alike + margin).mean()


@partial(jax.jit, static_argnums=(0, 1))
@partial(jax.vmap, in_axes=(None, None, 0, None))
def train(losses, inputs, key, measure):
    """The distance over training."""
    keys = jax.random.split(key, 3)
    nets = {
        "generator": layers(keys[0], NOISE, WIDTH, WIDTH, 64),
        "discriminator": layers(keys[1], inputs, WIDTH, WIDTH, 1),
    }
    optimizer, features = optax.adam(2e-4, b1=0.5), run(measure, REAL)[0]

    def played(nets, key):
        own = jax.random.split(key)
        real = REAL[jax.random.randint(own[0], (BATCH,), 0, len(REAL))]
        return losses(nets["discriminator"], real, generated(nets["generator"], own[1], BATCH))

    def step(carry, i):
        nets, state = carry
        told, fooled = jax.jacrev(played)(nets, jax.random.fold_in(keys[2], i))
        gradient = {"discriminator": told["discriminator"], "generator": fooled["generator"]}
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(nets, updates), state), None

    def part(carry, i):
        carry, _ = jax.lax.scan(step, carry, i * (STEPS // RECORDS) + jnp.arange(STEPS // RECORDS))
        fake = generated(carry[0]["generator"], keys[2], len(REAL))
        return carry, frechet(features, run(measure, fake)[0])

    (nets, _), curve = jax.lax.scan(part, (nets, optimizer.init(nets)), jnp.arange(RECORDS))
    return curve, generated(nets["generator"], key, 16)


def main():
    """Three seeds of each; draws the distances and some images."""
    start, keys = layers(jax.random.key(9), 64, 64, 32, 10), jax.random.split(jax.random.key(0), 3)
    measure, _ = descend(classification, start, optax.adam(3e-3), 300)
    figure, numbers, last = Figure(figsize=(10, 3.4), layout="constrained"), {}, {}
    axis, *shown = figure.subplots(1, 3, width_ratios=[2, 1, 1])
    kinds = {"usual": (usual, 64), "relation, triplets": (relation, 128)}
    for colour, panel, (name, kind) in zip(COLOURS, shown, kinds.items(), strict=False):
        curves, images = map(np.array, train(*kind, keys, measure))
        steps = (np.arange(RECORDS) + 1) * STEPS // RECORDS
        axis.plot(steps, curves.mean(axis=0), color=colour, label=name)
        panel.imshow(images[0].reshape(4, 4, 8, 8).swapaxes(1, 2).reshape(32, 32), cmap="gray")
        panel.set(title=name, xticks=[], yticks=[])
        last[name] = curves[:, -1].mean()
        numbers[f"{name}: distance at the end"] = float(last[name])
        numbers[f"{name}: smallest distance"] = float(curves.min(axis=1).mean())
    axis.set(xlabel="step", ylabel="Frechet distance in a classifier's features", yscale="log")
    axis.legend()
    finish("relation_gan", numbers, bool(last["relation, triplets"] < last["usual"]), figure)


if __name__ == "__main__":
    arguments(__doc__)
    main()
