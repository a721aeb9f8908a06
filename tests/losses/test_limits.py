"""Beyond one batch in memory: references, queues, values per example, own pairs, two towers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gini_jax import losses

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(16, 5)), jnp.float32)
Y = jnp.asarray(RNG.integers(0, 4, 16))
R = jnp.asarray(RNG.normal(size=(9, 5)), jnp.float32)
Z = jnp.asarray(RNG.integers(0, 4, 9))
PAIRS = {
    "supcon": partial(losses.supcon_loss, temperature=0.5),
    "supcon inside": partial(losses.supcon_loss, temperature=0.5, average="inside"),
    "multi_similarity": partial(losses.multi_similarity_loss, beta=5.0),
    "triplet hard": losses.triplet_loss,
    "triplet all": partial(losses.triplet_loss, triplets="all", margin=1.0),
    "triplet semi-hard": partial(losses.triplet_loss, triplets="semi-hard", margin=1.0),
}


def close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b)


# ------------------------------------------------------------- references


@pytest.mark.parametrize("name", PAIRS)
def test_references_are_further_examples_that_are_no_anchors(name):
    """Against the loss of batch and references together, in which they have no weight as anchors.

    That is computed from the values per anchor of the whole table.
    """
    loss = PAIRS[name]
    together, labels = jnp.concatenate([X, R]), jnp.concatenate([Y, Z])
    each, counted = jax.jit(partial(loss, reduction="none"))(together, labels)
    own, here = jax.jit(partial(loss, reduction="none"))(X, Y, references=(R, Z))
    np.testing.assert_array_equal(here, counted[:16])
    if name.startswith(("supcon", "multi", "triplet hard")):  # one value per anchor
        close(own, each[:16])
    else:  # a mean over triplets: up to the share of the anchors' triplets
        close(own / own[counted[:16]].sum(), each[:16] / each[:16][counted[:16]].sum())


def test_references_alone_equal_pytorch_metric_learning():
    """`ref_emb` there."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    their = pytest.importorskip("pytorch_metric_learning.losses", reason="is not installed")
    x, y, r, z = (torch.tensor(np.asarray(a)) for a in (X, Y, R, Z))
    x.requires_grad_()
    value = their.SupConLoss(temperature=0.5)(x, y, ref_emb=r, ref_labels=z)
    value.backward()
    ours = lambda x: losses.supcon_loss(  # noqa: E731
        x, Y, temperature=0.5, references=(R, Z), against="references"
    )
    found, gradient = jax.jit(jax.value_and_grad(ours))(X)
    close(found, value.item())
    close(gradient, x.grad.numpy(), atol=1e-6)


def test_references_have_a_gradient_only_where_they_are_differentiated():
    loss = partial(losses.supcon_loss, against="references")
    of_x = jax.jit(jax.grad(lambda x: loss(x, Y, references=(x[:9] + R, Z))))(X)
    constant = jax.jit(jax.grad(lambda x: loss(x, Y, references=(X[:9] + R, Z))))(X)
    assert not np.allclose(of_x, constant)


@pytest.mark.parametrize("name", PAIRS)
def test_no_reference_that_counts_is_like_no_references(name):
    loss, nan = PAIRS[name], jnp.full_like(R, jnp.nan)
    without = jax.jit(jax.value_and_grad(lambda x: loss(x, Y)))(X)
    masked = (nan, Z, jnp.zeros(9))
    close(jax.jit(jax.value_and_grad(lambda x: loss(x, Y, references=masked)))(X), without)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda x: loss(x, Y, references=masked, against="references"))
    )(X)
    assert value == 0 and not np.any(gradient)


def test_wrong_references_are_refused():
    with pytest.raises(ValueError, match=r"they must be \[M, 5\]"):
        losses.supcon_loss(X, Y, references=(R[:, :3], Z))
    with pytest.raises(ValueError, match="needs references="):
        losses.supcon_loss(X, Y, against="references")
    with pytest.raises(ValueError, match="against='both' must be one of"):
        losses.supcon_loss(X, Y, references=(R, Z), against="both")


# ------------------------------------------------------------- values of examples


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("where", [None, jnp.arange(16) % 3])
def test_the_mean_of_the_values_that_count_is_the_loss(name, where):
    loss = PAIRS[name]

    def mean(x):
        values, counted = loss(x, Y, where=where, reduction="none")
        return jnp.where(counted, values, 0.0).sum() / counted.sum()

    close(
        jax.jit(jax.value_and_grad(mean))(X),
        jax.jit(jax.value_and_grad(lambda x: loss(x, Y, where=where)))(X),
    )


LOGITS = {
    "cosface": partial(losses.cosface_loss, scale=4.0),
    "arcface": partial(losses.arcface_loss, scale=4.0),
    "hierarchy": partial(losses.hierarchy_loss, superclasses=[0, 0, 1, 1]),
}


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("where", [None, jnp.arange(16) % 3])
def test_the_mean_of_the_examples_values_is_the_loss(name, where):
    loss, logits = LOGITS[name], jnp.tanh(X[:, :4])
    value, gradient = jax.jit(jax.value_and_grad(lambda x: loss(x, Y, where=where)))(logits)

    def mean(x):
        values, counted = loss(x, Y, where=where, reduction="none")
        return values.sum() / counted.sum()

    close(jax.jit(jax.value_and_grad(mean))(logits), (value, gradient))
    w = jnp.ones(16) if where is None else where
    parts = jax.pmap(
        lambda x, y, w: loss(x, y, where=w, reduction="none", axis_name="b"),
        axis_name="b",
        devices=jax.devices()[:4],
    )(logits.reshape(4, 4, 4), Y.reshape(4, 4), w.reshape(4, 4))
    close(parts[0].sum() / parts[1].sum(), value)


def test_three_views_are_classes_of_three_examples():
    views = X[:12].reshape(3, 4, 5)
    found = jax.jit(losses.nt_xent_loss)(*views)
    close(found, jax.jit(losses.supcon_loss)(X[:12], jnp.tile(jnp.arange(4), 3)))
    with pytest.raises(ValueError, match="they must be the same"):
        losses.nt_xent_loss(X, X, X[:3])


PROJECTION = losses.Projection.create(jax.random.key(0), 5, 4)
COMPARATOR = losses.Comparator.create(jax.random.key(0), 5, 6)
SEVERAL = {
    "nt_xent": lambda x, **more: losses.nt_xent_loss(x[:8], x[8:], **more),
    "simclr": lambda x, **more: losses.simclr_loss(x, None, PROJECTION, **more),
    "clip": lambda x, **more: losses.clip_loss(x[:8], x[8:], 3.0, **more),
    "siglip": lambda x, **more: losses.siglip_loss(x[:8], x[8:], 3.0, -1.0, **more),
    "relation": lambda x, **more: losses.relation_loss(x, Y, COMPARATOR, num_classes=4, **more),
    "relation_triplet": lambda x, **more: losses.relation_triplet_loss(x, Y, COMPARATOR, **more),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_every_mean_has_values(name):
    loss = SEVERAL[name]

    def mean(x):
        values, counted = loss(x, reduction="none")
        return jnp.where(counted, values, 0.0).sum() / counted.sum()

    close(jax.jit(jax.value_and_grad(mean))(X), jax.jit(jax.value_and_grad(loss))(X))


@pytest.mark.parametrize("name", PAIRS)
def test_values_on_four_devices_are_those_of_the_own_examples(name):
    loss = PAIRS[name]
    whole = jax.jit(partial(loss, reduction="none"))(X, Y, references=(R, Z))
    parts = jax.pmap(
        lambda x, y: loss(x, y, references=(R, Z), reduction="none", axis_name="b"),
        axis_name="b",
        devices=jax.devices()[:4],
    )(X.reshape(4, 4, 5), Y.reshape(4, 4))
    close([x.reshape(-1) for x in parts], list(whole))


# ------------------------------------------------------------- who belongs together


def test_rows_of_several_ones_are_labels_of_several_classes():
    """Against NumPy: an example that shares a class is a positive."""
    rows = np.asarray(RNG.random((16, 40)) < 0.05, np.float32)
    rows[3] = 0  # of no class: left out
    s = np.asarray(X, np.float64)
    s = s / np.linalg.norm(s, axis=1, keepdims=True)
    s = s @ s.T / 0.5
    there = rows.any(axis=1)
    same = (rows @ rows.T > 0) & ~np.eye(16, dtype=bool) & there[None]
    others = ~np.eye(16, dtype=bool) & there[None]
    terms = []
    for i in range(16):
        if there[i] and same[i].any():
            log_z = np.log(np.exp(s[i][others[i]]).sum())
            terms.append(np.mean(log_z - s[i][same[i]]))
    loss = partial(losses.supcon_loss, temperature=0.5)
    close(jax.jit(loss)(X, jnp.asarray(rows)), np.mean(terms))
    mapped = jax.pmap(
        lambda x, y: loss(x, y, axis_name="b"), axis_name="b", devices=jax.devices()[:4]
    )(X.reshape(4, 4, 5), rows.reshape(4, 4, 40))
    close(mapped, np.full(4, np.mean(terms)))


def test_soft_rows_count_as_their_largest_class():
    rows = 0.9 * jax.nn.one_hot(Y, 4) + 0.1 / 4
    for loss in PAIRS.values():
        close(jax.jit(loss)(X, rows), jax.jit(loss)(X, Y))


def test_pairs_of_ones_own_may_be_ignored():
    """Neighbours on a line belong together, those two apart are neither; against a loop."""

    def neighbours(a, b):
        apart = jnp.abs(a[:, None] - b[None, :])
        return apart <= 1, apart >= 3

    place = jnp.arange(16)
    found = jax.jit(partial(losses.triplet_loss, positives=neighbours, margin=0.3))(X, place)
    x, terms = np.asarray(X, np.float64), []
    for a in range(16):
        d = np.linalg.norm(x - x[a], axis=1)
        near = [d[p] for p in range(16) if p != a and abs(a - p) <= 1]
        far = [d[n] for n in range(16) if abs(a - n) >= 3]
        terms.append(max(max(near) - min(far) + 0.3, 0))
    close(found, np.mean(terms))
    classes = jax.jit(partial(losses.supcon_loss, positives=lambda a, b: a[:, None] == b[None, :]))
    close(classes(X, Y), jax.jit(losses.supcon_loss)(X, Y))
    with pytest.raises(ValueError, match="it must return a boolean table"):
        losses.supcon_loss(X, Y, positives=lambda a, b: a[:, None] * b[None, :])


# ------------------------------------------------------------- queue


def test_a_queue_holds_the_latest_examples_and_is_equal_on_all_devices():
    batches = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 16, 4)]
    queue = losses.Queue.create(6, channels=5)
    push = jax.jit(lambda queue, x, y: queue.push(x, y), donate_argnums=0)
    for x, y in batches:
        queue = push(queue, x, y)
    features, labels, there = queue.examples()
    assert there.all()
    order = np.roll(np.arange(6), -int(queue.start))  # oldest first
    np.testing.assert_array_equal(features[order], X[10:])
    np.testing.assert_array_equal(labels[order], Y[10:])
    mapped = jax.pmap(
        lambda x, y: losses.Queue.create(6, 5).push(x, y, axis_name="b"),
        axis_name="b",
        devices=jax.devices()[:4],
    )(X.reshape(4, 4, 5), Y.reshape(4, 4))
    for i in range(4):
        own = jax.tree.map(lambda x: x[i], mapped)  # noqa: B023
        np.testing.assert_array_equal(sorted(own.labels), sorted(Y[10:]))
        assert own.filled == 6


def test_a_queue_in_a_scan_gives_the_loss_of_cross_batch_memory():
    """Against a loop over NumPy lists."""

    def step(queue, batch):
        loss = losses.supcon_loss(*batch, references=queue.examples(), temperature=0.5)
        return queue.push(*batch), loss

    batches = X.reshape(4, 4, 5), Y.reshape(4, 4)
    last, found = jax.jit(lambda queue: jax.lax.scan(step, queue, batches))(
        losses.Queue.create(8, 5)
    )
    for i in range(4):
        first = max(0, 4 * i - 8)
        older = X[first : 4 * i], Y[first : 4 * i]
        references = older if i else None
        own = jax.jit(losses.supcon_loss, static_argnames="temperature")
        expected = own(batches[0][i], batches[1][i], temperature=0.5, references=references)
        close(found[i], expected)
    assert last.filled == 8


def test_masked_rows_take_a_place_and_belong_to_nothing():
    queue = losses.Queue.create(4, 5).push(X[:4] * jnp.nan, Y[:4], where=jnp.zeros(4))
    found = losses.supcon_loss(X, Y, references=queue.examples())
    close(found, losses.supcon_loss(X, Y))
    with pytest.raises(ValueError, match="do not fit a queue"):
        queue.push(X[:, :3], Y)


# ------------------------------------------------------------- two towers


def towers(devices=1):
    a, b = jnp.asarray(RNG.normal(size=(2, 8, 6)), jnp.float32)
    return a, b


def numpy_towers(a, b, scale, bias=None, w=None):
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    w = np.ones(len(a)) if w is None else np.asarray(w, np.float64)
    a, b, w = a[w > 0], b[w > 0], w[w > 0]
    s = scale * a @ b.T
    if bias is None:
        of_rows = np.log(np.exp(s).sum(axis=1)) - np.diag(s)
        of_columns = np.log(np.exp(s).sum(axis=0)) - np.diag(s)
        return (w * (of_rows + of_columns) / 2).sum() / w.sum()
    z = 2 * np.eye(len(a)) - 1
    each = np.log1p(np.exp(-z * (s + bias))).sum(axis=1)
    return (w * each).sum() / w.sum()


TOWERS = {
    "clip": (losses.clip_loss, (7.0,)),
    "siglip": (losses.siglip_loss, (7.0, -2.0)),
}


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("where", [None, jnp.array([1, 1, 0, 2, 1, 0, 1, 1.0])])
def test_towers_equal_numpy_and_do_not_depend_on_the_devices(name, where):
    loss, rest = TOWERS[name]
    a, b = towers()
    if where is not None:
        a = jnp.where(where[:, None] > 0, a, jnp.nan)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda a, b, *rest: loss(a, b, *rest, where=where), (0, 1, 2))
    )(a, b, *rest)
    close(value, numpy_towers(a, b, *rest, w=where))
    assert all(np.isfinite(x).all() for x in gradient)
    w = jnp.ones(8) if where is None else where

    def own(a, b, w):
        return jax.value_and_grad(lambda a, b: loss(a, b, *rest, where=w, axis_name="b"), (0, 1))(
            a, b
        )

    for n in (2, 8):
        split = [x.reshape(n, 8 // n, *x.shape[1:]) for x in (a, b, w)]
        found, of = jax.pmap(own, axis_name="b", devices=jax.devices()[:n])(*split)
        close(found, np.full(n, value), rtol=1e-5)
        for ours, expected in zip(of, gradient[:2], strict=True):
            close(ours.reshape(8, 6) / n, expected, atol=1e-6)


def test_siglip_passes_rows_around_and_gathers_nothing():
    a, b = towers()
    split = [x.reshape(4, 2, 6) for x in (a, b)]
    step = jax.pmap(
        jax.grad(lambda a, b: losses.siglip_loss(a, b, 5.0, -1.0, axis_name="b")),
        axis_name="b",
        devices=jax.devices()[:4],
    )
    text = step.lower(*split).as_text()
    assert "collective_permute" in text and "all_gather" not in text


# ------------------------------------------------------------- gradient caching


def network(params, x, key=None):
    hidden = jnp.tanh(x @ params["a"])
    if key is not None:
        hidden = hidden * jax.random.bernoulli(key, 0.5, hidden.shape)
    return hidden @ params["b"]


def params_of(dtype=jnp.float32):
    a, b = jax.random.split(jax.random.key(1))
    return {
        "a": jax.random.normal(a, (5, 7), dtype),
        "b": jax.random.normal(b, (7, 3), dtype),
    }


@pytest.mark.parametrize("parts", [1, 2, 8, 16])
def test_caching_is_an_identity_in_float64(parts):
    with jax.enable_x64(True):
        params, x = params_of(jnp.float64), jnp.asarray(X, jnp.float64)
        loss = partial(losses.supcon_loss, temperature=0.5)
        whole = jax.jit(jax.value_and_grad(lambda p: loss(network(p, x), Y)))(params)
        found = jax.jit(losses.cached_value_and_grad(loss, network, parts))(params, x, Y)
        close(found, whole, rtol=1e-12, atol=1e-12)


def test_caching_two_towers_with_a_parameter_of_the_loss():
    params, rest = params_of(), jnp.array(3.0)
    both = lambda params, inputs: tuple(network(params, x) for x in inputs)  # noqa: E731
    loss = lambda embeddings, scale: losses.clip_loss(*embeddings, scale)  # noqa: E731
    inputs = (X, jnp.flip(X, axis=1))
    expected = jax.jit(jax.value_and_grad(lambda p, s: loss(both(p, inputs), s), (0, 1)))(
        params, rest
    )
    cached = losses.cached_value_and_grad(loss, both, 4, rest_argnums=(0,))
    close(jax.jit(cached)(params, inputs, rest), expected)


def test_caching_repeats_dropout_and_carries_a_state():
    params, key = params_of(), jax.random.key(5)
    cached = losses.cached_value_and_grad(losses.supcon_loss, network, 4)
    value, gradient = jax.jit(cached)(params, X, Y, key=key)

    def whole(params):
        keys = jax.random.split(key, 4)
        parts = [network(params, X[m::4], keys[m]) for m in range(4)]
        return losses.supcon_loss(jnp.stack(parts, axis=1).reshape(16, 3), Y)

    close((value, gradient), jax.jit(jax.value_and_grad(whole))(params))

    def counting(params, x, state):
        return network(params, x) * (1 + state), state + x.mean()

    cached = losses.cached_value_and_grad(losses.supcon_loss, counting, 4)
    value, gradient, state = jax.jit(cached)(params, X, Y, state=jnp.zeros(()))
    states = np.cumsum([0, *(float(X[m::4].mean()) for m in range(4))])
    close(state, states[-1])

    def with_states(params):
        parts = [network(params, X[m::4]) * (1 + states[m]) for m in range(4)]
        return losses.supcon_loss(jnp.stack(parts, axis=1).reshape(16, 3), Y)

    close((value, gradient), jax.jit(jax.value_and_grad(with_states))(params), rtol=1e-4)


@pytest.mark.parametrize("devices", [2, 4])
def test_caching_is_exact_in_every_way_of_sharding(devices):
    params, there = params_of(), jax.devices()[:devices]
    expected = jax.jit(jax.value_and_grad(lambda p: losses.supcon_loss(network(p, X), Y)))(params)
    cached = losses.cached_value_and_grad
    own = cached(partial(losses.supcon_loss, axis_name="b"), network, 2)

    def step(params, x, y):
        value, gradient = own(params, x, y)
        return jax.lax.pmean((value, gradient), "b")

    split = [a.reshape(devices, -1, *a.shape[1:]) for a in (X, Y)]
    mapped = jax.pmap(step, axis_name="b", in_axes=(None, 0, 0), devices=there)(params, *split)
    close(jax.tree.map(lambda x: x[0], mapped), expected)
    mesh = Mesh(np.array(there), ("b",))
    sharded = jax.shard_map(step, mesh=mesh, in_specs=(P(), P("b"), P("b")), out_specs=P())
    close(jax.jit(sharded)(params, X, Y), expected)
    x, y = (jax.device_put(a, NamedSharding(mesh, P("b"))) for a in (X, Y))
    close(jax.jit(cached(losses.supcon_loss, network, 2))(params, x, y), expected)


def test_caching_refuses_parts_that_do_not_divide_the_examples():
    with pytest.raises(ValueError, match="micro_batches=5 does not divide the 16 examples; 4 does"):
        losses.cached_value_and_grad(losses.supcon_loss, network, 5)(params_of(), X, Y)
    with pytest.raises(ValueError, match="positive integer"):
        losses.cached_value_and_grad(losses.supcon_loss, network, 0)
