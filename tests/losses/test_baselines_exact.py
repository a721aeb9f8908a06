"""The losses beside the paper's, against float64 NumPy and other libraries."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gini_jax import losses
from tests.helpers import baselines
from tests.helpers.baselines import (
    COMPARATOR,
    LOSSES,
    MIX,
    PROJECTION,
    PROXIES,
    SUPERCLASSES,
    C,
    K,
    close,
    value_and_gradient,
)


@pytest.fixture(scope="module", name="batch")
def _batch():
    return baselines.batch()


def rows_of(x, labels, compare):
    """For each anchor: what it is compared with, its positives and its negatives."""
    for i in range(len(x)):
        values = np.array([compare(x[i], y) for y in x])
        same = labels == labels[i]
        yield values, same & (np.arange(len(x)) != i), ~same


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def numpy_cosine(x, y):
    return unit(x) @ unit(y)


def numpy_distance(x, y):
    return np.linalg.norm(x - y)


def numpy_supcon(x, labels, inside=False, temperature=0.1):
    found = []
    for s, positive, negative in rows_of(x, labels, numpy_cosine):
        if positive.any():
            share = np.exp(s / temperature) / np.exp(s / temperature)[positive | negative].sum()
            of = np.log(share[positive].mean()) if inside else np.log(share[positive]).mean()
            found.append(-of)
    return np.mean(found)


def numpy_nt_xent(x, labels):
    del labels
    return numpy_supcon(np.concatenate([x, x[:, ::-1]]), np.tile(np.arange(len(x)), 2))


def numpy_simclr(x, labels):
    hidden, bias, out = (np.asarray(p, np.float64) for p in PROJECTION)
    both = np.maximum(np.concatenate([x, x[:, ::-1]]) @ hidden + bias, 0) @ out
    return numpy_supcon(both, np.tile(np.arange(len(x)), 2), temperature=0.5)


def numpy_triplet(x, labels, kind, compare, margin=0.2):
    found = []
    for d, positive, negative in rows_of(x, labels, compare):
        if not (positive.any() and negative.any()):
            continue
        if kind == "hard":
            found.append(max(d[positive].max() - d[negative].min() + margin, 0))
        elif kind == "all":
            all_of = [p - n + margin for p, n in product(d[positive], d[negative])]
            found += [loss for loss in all_of if loss > 0]
        else:
            for p in d[positive]:
                farther = d[negative][d[negative] > p]
                n = farther.min() if len(farther) else d[negative].max()
                found.append(max(p - n + margin, 0))
    return np.mean(found)


def numpy_multi_similarity(x, labels):
    found = [
        np.log1p(np.exp(-2 * (s[positive] - 0.5)).sum()) / 2
        + np.log1p(np.exp(50 * (s[negative] - 0.5)).sum()) / 50
        for s, positive, negative in rows_of(x, labels, numpy_cosine)
    ]
    return np.mean(found)


def scatter(x, labels):
    classes = np.unique(labels)
    means = np.stack([x[labels == k].mean(axis=0) for k in classes])
    within = sum(((x[labels == k] - m) ** 2).sum() for k, m in zip(classes, means, strict=True))
    counts = np.array([(labels == k).sum() for k in classes])
    between = (counts * ((means - x.mean(axis=0)) ** 2).sum(axis=1)).sum()
    return within, between, means


def numpy_island(x, labels):
    units = unit(scatter(x, labels)[2])
    cosines = units @ units.T
    return cosines[~np.eye(len(units), dtype=bool)].mean() + 1


def numpy_vcreg(x, labels):
    v = np.cov(x, rowvar=False)
    off = v[~np.eye(len(v), dtype=bool)]
    return np.maximum(1 - np.sqrt(np.diag(v) + 1e-4), 0).mean() + (off**2).mean()


def numpy_decorrelation(x, labels):
    r = np.corrcoef(x, rowvar=False)
    return (r[~np.eye(len(r), dtype=bool)] ** 2).mean()


def numpy_opl(x, labels, gamma=0.5):
    same, other = [], []
    for s, positive, negative in rows_of(x, labels, numpy_cosine):
        same += list(s[positive])
        other += list(s[negative])
    return 1 - np.mean(same) + gamma * abs(np.mean(other))


def numpy_rate_reduction(x, labels, eps=0.5):
    def rate(z):
        return np.linalg.slogdet(np.eye(C) + C / (len(z) * eps) * z.T @ z)[1] / 2

    z, classes = unit(x), np.unique(labels)
    parts = [(labels == k).mean() * rate(z[labels == k]) for k in classes]
    return sum(parts) - rate(z)


def numpy_monosemantic(x, labels, of_labels=False, still=None):
    """`still`: the features that the embeddings, which are constants, come from."""
    seen = np.eye(K)[labels] if of_labels else unit(x if still is None else still)
    a = (x - x.min(axis=0)) / np.ptp(x, axis=0)
    scores = []
    for c in range(x.shape[1]):
        weights = np.outer(a[:, c], a[:, c]) * (1 - np.eye(len(x)))
        scores.append((weights * (seen @ seen.T)).sum() / weights.sum())
    return 1 - np.mean(scores)


def numpy_relation(x, labels):
    first, second, bias, out, out_bias = (np.asarray(p, np.float64) for p in COMPARATOR)
    means = scatter(x, labels)[2]
    hidden = np.maximum((x @ first)[:, None] + (means @ second)[None] + bias, 0)
    scores = 1 / (1 + np.exp(-(hidden @ out + out_bias)))
    return ((scores - np.eye(K)[labels]) ** 2).mean()


def numpy_proxy_anchor(x, labels):
    s, onehot = unit(x) @ unit(np.asarray(PROXIES, np.float64)).T, np.eye(K)[labels]
    near = np.log1p((onehot * np.exp(-32 * (s - 0.1))).sum(axis=0)).sum() / len(np.unique(labels))
    return near + np.log1p(((1 - onehot) * np.exp(32 * (s + 0.1))).sum(axis=0)).mean()


def softmax_loss(logits, rows):
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -(rows * log_p).sum(axis=1).mean()


def numpy_margin(x, labels, kind):
    cosines, rows = np.tanh(x @ np.asarray(MIX, np.float64)), np.eye(K)[labels]
    if kind == "cosface":
        return softmax_loss(64 * (cosines - 0.35 * rows), rows)
    assert cosines.min() > -np.cos(0.5)
    turned = np.cos(np.arccos(cosines) + 0.5)
    return softmax_loss(64 * np.where(rows > 0, turned, cosines), rows)


def numpy_hierarchy(x, labels):
    logits = np.tanh(x @ np.asarray(MIX, np.float64))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    groups = np.array(SUPERCLASSES)
    of_group = np.array([p[i, groups == groups[k]].sum() for i, k in enumerate(labels)])
    of_class = p[np.arange(len(p)), labels]
    return (-np.log(of_group) - 0.5 * np.log(of_class / of_group)).mean()


def numpy_scores_distance(x, y):
    first, second, bias, out, out_bias = (np.asarray(p, np.float64) for p in COMPARATOR)
    hidden = np.maximum(x @ first + y @ second + bias, 0)
    return 1 - 1 / (1 + np.exp(-(hidden @ out + out_bias)))


def squared(x, y):
    return numpy_distance(x, y) ** 2


NUMPY = {
    "center": lambda x, y: scatter(x, y)[0] / len(x) / 2,
    "fisher": lambda x, y: scatter(x, y)[0] / scatter(x, y)[1],
    "island": numpy_island,
    "vcreg": numpy_vcreg,
    "decorrelation": numpy_decorrelation,
    "opl": numpy_opl,
    "rate reduction": numpy_rate_reduction,
    "monosemantic": numpy_monosemantic,
    "monosemantic by label": partial(numpy_monosemantic, of_labels=True),
    "nt-xent": numpy_nt_xent,
    "supcon": numpy_supcon,
    "supcon inside": partial(numpy_supcon, inside=True),
    "triplet hard": partial(numpy_triplet, kind="hard", compare=numpy_distance),
    "triplet all": partial(numpy_triplet, kind="all", compare=numpy_distance),
    "triplet semi-hard": partial(numpy_triplet, kind="semi-hard", compare=squared),
    "multi-similarity": numpy_multi_similarity,
    "proxy anchor": numpy_proxy_anchor,
    "relation": numpy_relation,
    "relation triplet": partial(
        numpy_triplet, kind="hard", compare=numpy_scores_distance, margin=0.5
    ),
    "simclr": numpy_simclr,
    "cosface": partial(numpy_margin, kind="cosface"),
    "arcface": partial(numpy_margin, kind="arcface"),
    "hierarchy": numpy_hierarchy,
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_equal_float64_numpy(name, batch):
    """The gradient by central differences in float64, along three directions."""
    features, labels = np.asarray(batch[0], np.float64), np.asarray(batch[1])
    value, gradient = jax.jit(partial(value_and_gradient, name))(*batch)

    constant = {"still": features.mean(axis=(1, 2))} if name == "monosemantic" else {}

    def exact(features):
        return NUMPY[name](features.mean(axis=(1, 2)), labels, **constant)

    np.testing.assert_allclose(value, exact(features), rtol=1e-5)
    rng = np.random.default_rng(1)
    for direction in rng.normal(size=(3, *features.shape)):
        ahead, behind = exact(features + 1e-6 * direction), exact(features - 1e-6 * direction)
        slope = (np.asarray(gradient, np.float64) * direction).sum()
        scale = np.linalg.norm(gradient)
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-5 * scale)


# ------------------------------------------------------------- other libraries


def test_nt_xent_equals_optax():
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, 12, C)).astype(np.float32)
    images = np.arange(12)

    def theirs(first, second):
        both = jnp.concatenate([first, second])
        return optax.losses.ntxent(both, jnp.concatenate([images, images]), temperature=0.3)

    ours = partial(losses.nt_xent_loss, temperature=0.3)
    found, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1)))(first, second) for f in (ours, theirs)
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    close(found[1], expected[1], rtol=1e-4, atol=1e-6)


def pml_losses():
    """The same losses of pytorch-metric-learning, as functions of features and labels."""
    pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    pml = pytest.importorskip(
        "pytorch_metric_learning", reason="compares with pytorch-metric-learning: not installed"
    )
    from pytorch_metric_learning import distances, miners
    from pytorch_metric_learning import losses as theirs

    plain = distances.LpDistance(normalize_embeddings=False, p=2)
    hard, all_of = (miners.BatchHardMiner(distance=plain), None)
    triplet = theirs.TripletMarginLoss(margin=0.2, distance=plain)
    hardest = theirs.TripletMarginLoss(
        margin=0.2, distance=plain, reducer=pml.reducers.MeanReducer()
    )
    return {
        "supcon": lambda x, y: theirs.SupConLoss(temperature=0.1)(x, y),
        "multi-similarity": lambda x, y: theirs.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)(
            x, y
        ),
        "triplet hard": lambda x, y: hardest(x, y, hard(x, y)),
        "triplet all": lambda x, y: triplet(x, y, all_of),
    }


@pytest.mark.parametrize("name", ["supcon", "multi-similarity", "triplet hard", "triplet all"])
def test_value_and_gradient_equal_pytorch_metric_learning(name, batch):
    reference = pml_losses()[name]
    import torch

    features, labels = batch[0].mean(axis=(1, 2)), batch[1]
    value, gradient = value_and_gradient(name, features, labels)
    x = torch.tensor(np.asarray(features, np.float64), requires_grad=True)
    expected = reference(x, torch.tensor(np.asarray(labels)))
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["cosface", "arcface", "proxy anchor"])
def test_losses_with_weights_equal_pytorch_metric_learning(name):
    """Their class vectors are parameters of the loss: ours come in as cosines or proxies."""
    pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    pytest.importorskip(
        "pytorch_metric_learning", reason="compares with pytorch-metric-learning: not installed"
    )
    import torch
    from pytorch_metric_learning import losses as theirs

    rng = np.random.default_rng(4)
    x, labels = rng.normal(size=(16, C)), rng.integers(0, K, 16)
    w = np.asarray(PROXIES, np.float64)
    kinds = {
        "cosface": (theirs.CosFaceLoss(K, C, margin=0.35, scale=30), losses.cosface_loss, 0.35),
        "arcface": (theirs.ArcFaceLoss(K, C, margin=28.6479, scale=30), losses.arcface_loss, 0.5),
        "proxy anchor": (theirs.ProxyAnchorLoss(K, C, margin=0.1, alpha=32), None, 0.1),
    }
    reference, loss, margin = kinds[name]
    parameter = reference.proxies if name == "proxy anchor" else reference.W
    parameter.data = torch.tensor(w if name == "proxy anchor" else w.T)
    there = torch.tensor(x, requires_grad=True)
    expected = reference(there, torch.tensor(labels))
    expected.backward()

    def ours(x):
        if loss is None:
            return losses.proxy_anchor_loss(x, labels, PROXIES)
        unit_x, unit_w = (v / jnp.linalg.norm(v, axis=1, keepdims=True) for v in (x, PROXIES))
        return loss(unit_x @ unit_w.T, labels, scale=30.0, margin=margin)

    value, gradient = jax.value_and_grad(ours)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(value, expected.item(), rtol=2e-5)
    np.testing.assert_allclose(gradient, there.grad.numpy(), rtol=1e-3, atol=1e-5)
