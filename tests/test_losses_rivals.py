"""Losses on features beside the paper's: against other libraries, float64 NumPy, and laws."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gini_jax import losses

K, C = 5, 8
PROXIES = jnp.asarray(np.random.default_rng(9).normal(size=(K, C)), jnp.float32)
COMPARATOR = losses.Comparator.create(jax.random.key(3), channels=C, hidden=6)
SUPERCLASSES = [0, 1, 0, 2, 1]
MIX = jnp.asarray(np.random.default_rng(8).normal(size=(C, K)) / 4, jnp.float32)


def of_cosines(loss):
    """A loss of cosines `[N, K]` as one of features."""

    def of_features(features, labels, num_classes=None, axis=-1, **options):
        moved = jnp.moveaxis(jnp.asarray(features), axis, -1)
        x = moved.reshape(len(moved), -1, C).mean(axis=1).astype(jnp.float32)
        return loss(jnp.tanh(x @ MIX), labels, **options)

    return of_features


def without_classes(loss):
    """A loss of pairs, which needs no number of classes."""
    return lambda features, labels, num_classes=None, **more: loss(features, labels, **more)


LOSSES = {
    "center": losses.center_loss,
    "fisher": losses.fisher_loss,
    "island": losses.island_loss,
    "supcon": without_classes(losses.supcon_loss),
    "supcon inside": without_classes(partial(losses.supcon_loss, average="inside")),
    "triplet hard": without_classes(losses.triplet_loss),
    "triplet all": without_classes(partial(losses.triplet_loss, triplets="all")),
    "triplet semi-hard": without_classes(
        partial(losses.triplet_loss, triplets="semi-hard", distance="squared")
    ),
    "multi-similarity": without_classes(losses.multi_similarity_loss),
    "proxy anchor": without_classes(
        lambda x, y, **more: losses.proxy_anchor_loss(x, PROXIES, y, **more)
    ),
    "relation": lambda x, y, **more: losses.relation_loss(x, y, COMPARATOR, **more),
    "relation triplet": without_classes(
        partial(
            losses.triplet_loss,
            distance=lambda x, y: 1 - losses.relation_scores(COMPARATOR, x, y),
        )
    ),
    "cosface": of_cosines(losses.cosface_loss),
    "arcface": of_cosines(losses.arcface_loss),
    "hierarchy": of_cosines(
        partial(losses.hierarchy_loss, superclasses=SUPERCLASSES, fine_weight=0.5)
    ),
}
PAIRS = (
    "supcon",
    "supcon inside",
    "triplet hard",
    "triplet all",
    "triplet semi-hard",
    "multi-similarity",
    "relation triplet",
)
ON_LOGITS = ("cosface", "arcface", "hierarchy")


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(K), rng.integers(0, K, 11)])  # all classes are there
    features = jnp.asarray(rng.normal(size=(16, 2, 2, C)), jnp.float32)
    return features, jnp.asarray(labels)


def value_and_gradient(name, features, labels, **options):
    loss = partial(LOSSES[name], num_classes=K if labels.ndim == 1 else None, **options)
    return jax.value_and_grad(loss)(features, labels)


def all_losses(features, labels, where=None):
    """Value and gradient of every loss, in one program."""
    return {name: value_and_gradient(name, features, labels, where=where) for name in LOSSES}


def close(found, expected, rtol=1e-6, atol=1e-6):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


# ------------------------------------------------------------- float64 NumPy, by loops


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
    "supcon": numpy_supcon,
    "supcon inside": partial(numpy_supcon, inside=True),
    "triplet hard": partial(numpy_triplet, kind="hard", compare=numpy_distance),
    "triplet all": partial(numpy_triplet, kind="all", compare=numpy_distance),
    "triplet semi-hard": partial(numpy_triplet, kind="semi-hard", compare=squared),
    "multi-similarity": numpy_multi_similarity,
    "proxy anchor": numpy_proxy_anchor,
    "relation": numpy_relation,
    "relation triplet": partial(numpy_triplet, kind="hard", compare=numpy_scores_distance),
    "cosface": partial(numpy_margin, kind="cosface"),
    "arcface": partial(numpy_margin, kind="arcface"),
    "hierarchy": numpy_hierarchy,
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_equal_float64_numpy(name, batch):
    """The gradient by central differences in float64, along three directions."""
    features, labels = np.asarray(batch[0], np.float64), np.asarray(batch[1])
    value, gradient = jax.jit(partial(value_and_gradient, name))(*batch)

    def exact(features):
        return NUMPY[name](features.mean(axis=(1, 2)), labels)

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
    found, expected = (jax.value_and_grad(f, (0, 1))(first, second) for f in (ours, theirs))
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
            return losses.proxy_anchor_loss(x, PROXIES, labels)
        unit_x, unit_w = (v / jnp.linalg.norm(v, axis=1, keepdims=True) for v in (x, PROXIES))
        return loss(unit_x @ unit_w.T, labels, scale=30.0, margin=margin)

    value, gradient = jax.value_and_grad(ours)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(value, expected.item(), rtol=2e-5)
    np.testing.assert_allclose(gradient, there.grad.numpy(), rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------- over devices


@pytest.mark.parametrize(
    ("way", "devices"),
    [("pmap", 2), ("pmap", 8), ("vmap", 8), ("shard_map", 8), ("shard_map without check_vma", 2)],
)
def test_parts_on_several_devices_equal_the_whole(way, devices, batch):
    if way.startswith("shard_map") and not hasattr(jax, "shard_map"):
        pytest.skip("jax.shard_map is newer than jax 0.6.0")
    features, labels = batch
    scale = jnp.linspace(0.5, 1.5, C)

    def step(scale, features, labels, axis_name=None):
        """All values, and their gradients by `scale`, in one backward pass."""
        options = {} if axis_name is None else {"axis_name": axis_name}

        def values(scale):
            x = jnp.tanh(features * scale)
            return jnp.stack([f(x, labels, num_classes=K, **options) for f in LOSSES.values()])

        gradients = jax.jacrev(values)(scale)
        return values(scale), gradients if axis_name is None else jax.lax.pmean(
            gradients, axis_name
        )

    expected = jax.jit(step)(scale, features, labels)
    mapped = partial(step, axis_name="i")
    if way.startswith("shard_map"):
        mesh = Mesh(np.array(jax.devices()[:devices]), ("i",))
        options = {"check_vma": False} if "without" in way else {}
        specs = {"in_specs": (P(), P("i"), P("i")), "out_specs": (P(), P())}
        found = jax.jit(jax.shard_map(mapped, mesh=mesh, **specs, **options))(
            scale, features, labels
        )
    else:
        parts = [x.reshape(devices, -1, *x.shape[1:]) for x in (features, labels)]
        transform = jax.pmap if way == "pmap" else lambda f, **axes: jax.jit(jax.vmap(f, **axes))
        found = transform(mapped, in_axes=(None, 0, 0), axis_name="i")(scale, *parts)
        found = jax.tree.map(lambda x: x[-1], found)
    close(found, expected, rtol=5e-6, atol=2e-6)


@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
def test_on_a_mesh_the_values_and_gradients_are_those_of_one_device(kind, batch):
    if not hasattr(jax.sharding, "auto_axes"):
        pytest.skip("Explicit axes need jax.sharding.auto_axes, newer than jax 0.6.0")
    features, labels = batch[0].mean(axis=(1, 2)), batch[1]
    mesh = jax.make_mesh((8,), ("a",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    names = [name for name in LOSSES if name not in ON_LOGITS]  # whose projection would need it

    def step(features, labels):
        return {name: value_and_gradient(name, features, labels) for name in names}

    placed = [jax.device_put(x, NamedSharding(mesh, P("a"))) for x in (features, labels)]
    close(jax.jit(step)(*placed), jax.jit(step)(features, labels), rtol=5e-6, atol=2e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_collectives_of_a_step(name, batch):
    """Pairs: one all-gather, of the features and what lies beside them. Sums: one all-reduce."""
    features, labels = batch[0].mean(axis=(1, 2)), batch[1]

    def loss(features, labels):
        return LOSSES[name](features, labels, num_classes=K, axis_name="i")

    mapped = jax.pmap(loss, axis_name="i")
    parts = features.reshape(8, 2, C), labels.reshape(8, 2)
    text = mapped.lower(*parts).compile().as_text()
    gathers = text.count(" all-gather(") + text.count(" all-gather-start(")
    assert gathers == (1 if name in PAIRS else 0)
    if name in PAIRS:
        assert f"f32[16,{C + 3}]" in text or f"f32[8,2,{C + 3}]" in text
    reduces = text.count(" all-reduce(") + text.count(" all-reduce-start(")
    assert reduces == (2 if name == "relation" else 1)  # prototypes, then the mean error


# ------------------------------------------------------------- micro-batches and chunks


@pytest.mark.parametrize("name", ["center", "fisher", "island"])
def test_moments_accumulate_exactly_and_blend_with_their_history(name, batch):
    features, labels = batch[0].mean(axis=(1, 2)), batch[1]
    loss, scale = LOSSES[name], jnp.linspace(0.5, 1.5, C)

    def moments(scale, part):
        return losses.feature_moments(jnp.tanh(features[part] * scale), labels[part], num_classes=K)

    parts = [slice(0, 6), slice(6, 16)]
    total = moments(scale, parts[0]) + moments(scale, parts[1])
    value, linearized = losses.linearize_at(loss, total)
    gradients = [jax.grad(lambda s, p=p: linearized(moments(s, p)))(scale) for p in parts]
    expected = jax.value_and_grad(lambda s: loss(jnp.tanh(features * s), labels, num_classes=K))(
        scale
    )
    close((value, sum(gradients)), expected, rtol=1e-5, atol=1e-6)
    blended, _ = losses.RunningSums.zeros_like(total).update(total, 0.9)
    np.testing.assert_allclose(loss(blended), value, rtol=1e-5)


def test_chunks_change_nothing_but_memory(batch):
    def step(features, labels, chunk_size=None):
        return {n: value_and_gradient(n, features, labels, chunk_size=chunk_size) for n in PAIRS}

    features, labels = batch[0].mean(axis=(1, 2)), batch[1]
    expected = jax.jit(step)(features, labels)
    for size in (5, 100):
        found = jax.jit(partial(step, chunk_size=size))(features, labels)
        close(found, expected, rtol=1e-5, atol=1e-6)


def test_chunks_bound_the_memory_of_a_gradient():
    x, labels = jnp.zeros((2048, 16)), jnp.zeros(2048, int)

    def temporaries(chunk_size):
        loss = partial(losses.supcon_loss, labels=labels, chunk_size=chunk_size)
        return jax.jit(jax.grad(loss)).lower(x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(64) < temporaries(None) / 8


# ------------------------------------------------------------- safety


SIX = np.random.default_rng(5).normal(size=(6, C))
DEGENERATE = {
    "one class": (SIX, np.zeros(6, int), np.ones(6)),
    "identical": (np.ones((6, C)), np.array([0, 1, 2, 0, 1, 2]), np.ones(6)),
    "all 0": (np.zeros((6, C)), np.array([0, 1, 2, 0, 1, 2]), np.ones(6)),
    "one example": (SIX, np.array([0, 1, 2, 0, 1, 2]), np.eye(6)[0]),
    "no pair of a class": (SIX, np.array([0, 1, 2, 3, 4, 0]), np.array([1, 1, 1, 1, 1, 0])),
    "large": (SIX * 1e6, np.array([0, 1, 2, 0, 1, 2]), np.ones(6)),
    "nothing": (SIX, np.array([0, 1, 2, 0, 1, 2]), np.zeros(6)),
}


def test_value_and_gradient_are_finite():
    step = jax.jit(all_losses)
    for case, (features, labels, where) in DEGENERATE.items():
        batch = jnp.asarray(features, jnp.float32), jnp.asarray(labels), jnp.asarray(where, "f4")
        for name, (value, gradient) in step(*batch).items():
            assert np.isfinite(value), (case, name)
            assert np.isfinite(gradient).all(), (case, name)
            if case == "nothing":
                assert value == 0 or name == "proxy anchor"
                np.testing.assert_array_equal(gradient, 0)


def test_rows_of_weight_0_may_hold_nan_and_change_nothing(batch):
    """Those on logits get the NaN in the logits: the projection here is not part of the loss."""
    features, labels = batch
    mask = jnp.arange(16) < 11
    found = jax.jit(all_losses)(features.at[11:].set(jnp.nan), labels, mask)
    expected = jax.jit(all_losses)(features[:11], labels[:11])
    for name in LOSSES:
        np.testing.assert_allclose(found[name][0], expected[name][0], rtol=1e-5)
        np.testing.assert_allclose(found[name][1][:11], expected[name][1], rtol=1e-4, atol=1e-6)
        if name not in ON_LOGITS:
            np.testing.assert_array_equal(found[name][1][11:], 0)
    logits = jnp.zeros((16, K)).at[11:].set(jnp.nan)
    for loss in (losses.cosface_loss, partial(losses.hierarchy_loss, superclasses=SUPERCLASSES)):
        assert np.isfinite(jax.grad(loss)(logits, labels, where=mask)).all()


def test_one_hot_rows_equal_integers_and_the_feature_axis_may_be_any(batch):
    features, labels = batch
    expected = jax.jit(all_losses)(features, labels)
    found = jax.jit(all_losses)(features, jnp.eye(K)[labels])
    close(found, expected, rtol=1e-5)
    moved = {name: partial(value_and_gradient, name, axis=1) for name in LOSSES}
    step = jax.jit(lambda x, y: {name: f(x, y) for name, f in moved.items()})
    for name, (value, gradient) in step(jnp.moveaxis(features, -1, 1), labels).items():
        close((value, jnp.moveaxis(gradient, 1, -1)), expected[name], rtol=1e-5)


STRICT = {
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_debug_nans": True,
    "jax_enable_x64": True,
}


def test_strict_modes(batch):
    features, labels = batch[0].mean(axis=(1, 2)), batch[1]
    names = [name for name in LOSSES if name not in ON_LOGITS]  # whose projection is not strict

    def step(features, labels, where):
        return {n: value_and_gradient(n, features, labels, where=where) for n in names}

    mask = jnp.arange(16) < 10
    expected = jax.jit(step)(features, labels, mask)
    before = {mode: getattr(jax.config, mode) for mode in STRICT}
    try:
        for mode, on in STRICT.items():
            jax.config.update(mode, on)
        found = jax.jit(lambda *batch: step(*batch))(features, labels, mask)
    finally:
        for mode, was in before.items():
            jax.config.update(mode, was)
    close(found, expected, rtol=1e-5, atol=1e-6)


def test_margins_of_0_and_a_flat_hierarchy_are_cross_entropy(batch):
    logits = jnp.tanh(batch[0].mean(axis=(1, 2)) @ MIX)
    labels = batch[1]
    ce = optax.softmax_cross_entropy_with_integer_labels(10 * logits, labels).mean()
    for loss in (losses.cosface_loss, losses.arcface_loss):
        np.testing.assert_allclose(loss(logits, labels, scale=10.0, margin=0.0), ce, rtol=1e-5)
    hierarchy = losses.hierarchy_loss(10 * logits, labels, SUPERCLASSES)
    np.testing.assert_allclose(hierarchy, ce, rtol=1e-5)


def test_arcface_falls_on_beyond_its_last_angle():
    """Their line beyond `pi - margin` keeps the loss falling as the cosine rises from -1 to 1."""
    cosines = jnp.linspace(-1, 1, 201)[:, None] * jnp.array([[1.0, 0.0]])
    each = jax.vmap(lambda row: losses.arcface_loss(row[None], jnp.array([0]), scale=4.0))(cosines)
    assert (np.diff(each) < 1e-6).all()


WRONG = {
    "chunk_size=0": lambda x, y: losses.supcon_loss(x, y, chunk_size=0),
    "temperature=0": lambda x, y: losses.supcon_loss(x, y, temperature=0.0),
    "average='middle'": lambda x, y: losses.supcon_loss(x, y, average="middle"),
    "triplets='easy'": lambda x, y: losses.triplet_loss(x, y, triplets="easy"),
    "distance='l1'": lambda x, y: losses.triplet_loss(x, y, distance="l1"),
    "alpha=0": lambda x, y: losses.multi_similarity_loss(x, y, alpha=0.0),
    "labels have shape": lambda x, y: losses.supcon_loss(x, y[:3]),
    "labels are missing": lambda x, y: losses.center_loss(x),
    "given together with FeatureMoments": lambda x, y: losses.fisher_loss(
        losses.feature_moments(x, y, num_classes=K), y
    ),
    "the views have shapes": lambda x, y: losses.nt_xent_loss(x, x[:3]),
    "scale=0": lambda x, y: losses.cosface_loss(x, y, scale=0.0),
    "superclasses have shape": lambda x, y: losses.hierarchy_loss(x, y, [0, 1]),
    "do not fit; proxies": lambda x, y: losses.proxy_anchor_loss(x, PROXIES[:, :2], y),
    "the comparator is for": lambda x, y: losses.relation_loss(
        x[:, :3], y, COMPARATOR, num_classes=K
    ),
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_input_is_refused(text, batch):
    with pytest.raises(ValueError, match=text):
        WRONG[text](batch[0].mean(axis=(1, 2)), batch[1])
