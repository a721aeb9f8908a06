"""Every loss beside the paper's, with one way to call them all."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gini_jax import losses

K, C = 5, 8
PROXIES = jnp.asarray(np.random.default_rng(9).normal(size=(K, C)), jnp.float32)
COMPARATOR = losses.Comparator.create(jax.random.key(3), channels=C, hidden=6)
PROJECTION = losses.Projection.create(jax.random.key(4), C, size=C)
SUPERCLASSES = [0, 1, 0, 2, 1]
MIX = jnp.asarray(np.random.default_rng(8).normal(size=(C, K)) / 4, jnp.float32)


def of_cosines(loss):
    """A loss of cosines `[N, K]` as one of features."""

    def of_features(features, labels, num_classes=None, axis=-1, **options):
        moved = jnp.moveaxis(jnp.asarray(features), axis, -1)
        x = moved.mean(axis=tuple(range(1, moved.ndim - 1))).astype(jnp.float32)
        return loss(jnp.tanh(x @ MIX), labels, **options)

    return of_features


def two_views(features, labels, axis=-1, **options):
    """A loss of two views as one of features: the second view has the channels in reverse."""
    second = jnp.flip(jnp.asarray(features), axis)
    return losses.nt_xent_loss(features, second, axis=axis, **options)


def simclr(features, labels, axis=-1, where=None, **options):
    """A loss of both views in one array as one of features."""
    both = jnp.concatenate([jnp.asarray(features), jnp.flip(jnp.asarray(features), axis)])
    where = None if where is None else jnp.concatenate([where, where])
    return losses.simclr_loss(both, labels, PROJECTION, axis=axis, where=where, **options)


def without_classes(loss):
    """A loss of pairs, which needs no number of classes."""
    return lambda features, labels, num_classes=None, **more: loss(features, labels, **more)


LOSSES = {
    "center": losses.center_loss,
    "fisher": losses.fisher_loss,
    "island": losses.island_loss,
    "vcreg": losses.vcreg_loss,
    "decorrelation": losses.decorrelation_loss,
    "opl": losses.opl_loss,
    "rate reduction": losses.rate_reduction_loss,
    "monosemantic": losses.monosemantic_loss,
    "monosemantic by label": partial(losses.monosemantic_loss, by="labels"),
    "nt-xent": without_classes(two_views),
    "supcon": without_classes(losses.supcon_loss),
    "supcon inside": without_classes(partial(losses.supcon_loss, average="inside")),
    "triplet hard": without_classes(losses.triplet_loss),
    "triplet all": without_classes(partial(losses.triplet_loss, triplets="all")),
    "triplet semi-hard": without_classes(
        partial(losses.triplet_loss, triplets="semi-hard", distance="squared")
    ),
    "multi-similarity": without_classes(losses.multi_similarity_loss),
    "proxy anchor": without_classes(
        lambda x, y, **more: losses.proxy_anchor_loss(x, y, PROXIES, **more)
    ),
    "relation": lambda x, y, **more: losses.relation_loss(x, y, COMPARATOR, **more),
    "relation triplet": without_classes(
        lambda x, y, **more: losses.relation_triplet_loss(x, y, COMPARATOR, **more)
    ),
    "simclr": without_classes(simclr),
    "cosface": of_cosines(losses.cosface_loss),
    "arcface": of_cosines(losses.arcface_loss),
    "hierarchy": of_cosines(
        partial(losses.hierarchy_loss, superclasses=SUPERCLASSES, fine_weight=0.5)
    ),
}
# Those of logits, of logits: above they follow a projection that is not theirs.
LOGIT_LOSSES = {
    "cosface": losses.cosface_loss,
    "arcface": losses.arcface_loss,
    "hierarchy": partial(losses.hierarchy_loss, superclasses=SUPERCLASSES),
}
PAIRS = (
    "nt-xent",
    "simclr",
    "supcon",
    "supcon inside",
    "triplet hard",
    "triplet all",
    "triplet semi-hard",
    "multi-similarity",
    "relation triplet",
)


def batch():
    """Features `[16, 2, 2, C]` and integer labels, of all classes."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(K), rng.integers(0, K, 11)])
    features = jnp.asarray(rng.normal(size=(16, 2, 2, C)), jnp.float32)
    return features, jnp.asarray(labels)


def value_and_gradient(name, features, labels, **options):
    loss = partial(LOSSES[name], num_classes=K if labels.ndim == 1 else None, **options)
    return jax.value_and_grad(loss)(features, labels)


def all_losses(features, labels, where=None):
    """Value and gradient of every loss, in one program."""
    return {name: value_and_gradient(name, features, labels, where=where) for name in LOSSES}


def own_losses(features, logits, labels, where=None):
    """Value and gradient of every loss by what it is a function of, with nothing put before it."""
    found = {
        name: value_and_gradient(name, features, labels, where=where)
        for name in LOSSES
        if name not in LOGIT_LOSSES
    }
    for name, loss in LOGIT_LOSSES.items():
        found[name] = jax.value_and_grad(loss)(logits, labels, where=where)
    return found


def close(found, expected, rtol=1e-6, atol=1e-6):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)
