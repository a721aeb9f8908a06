"""Beyond one batch in memory: references, queues, values per example, own pairs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.slow
def test_views_of_other_images_are_only_compared_with():
    """Against the loss of three views, the others' images left out of the mean."""
    a, b = X[:8], X[8:]
    whole = jnp.concatenate([a, b, R]), jnp.concatenate([jnp.arange(8), jnp.arange(8), 8 + Z * 0])
    each, _ = losses.supcon_loss(*whole, temperature=0.5, reduction="none")
    found = losses.nt_xent_loss(a, b, temperature=0.5, references=(R, Z))
    close(found, each[:16].mean())
    there = jnp.arange(9) < 4
    expected = losses.nt_xent_loss(a, b, temperature=0.5, references=(R[:4], Z[:4]))
    bad = jnp.where(there[:, None], R, jnp.nan)
    for given in ((bad, Z, there), (bad, jnp.where(there, Z, -1))):
        close(losses.nt_xent_loss(a, b, temperature=0.5, references=given), expected)


def test_views_of_other_images_are_projected_too():
    head = losses.Projection.create(jax.random.key(0), 5, 3)
    z, r = (jax.nn.relu(x @ head.hidden + head.bias) @ head.out for x in (X, R))
    expected = losses.nt_xent_loss(z[:8], z[8:], temperature=0.5, references=(r, Z))
    close(losses.simclr_loss(X, None, head, references=(R, Z)), expected)
    bad = jnp.where(Z[:, None] > 0, R, jnp.nan)
    found = jax.jit(jax.value_and_grad(losses.simclr_loss), static_argnums=1)(
        X, None, head, references=(bad, Z, Z > 0)
    )
    close(found[0], losses.nt_xent_loss(z[:8], z[8:], temperature=0.5, references=(r, Z, Z > 0)))
    assert np.isfinite(found[1]).all()
    with pytest.raises(ValueError, match="references have features of shape"):
        losses.simclr_loss(X, None, head, references=(R[:, :3], Z))


def test_a_learned_comparator_takes_references():
    learned = losses.Comparator.create(jax.random.key(0), 5)
    compare = lambda x, y: 1 - losses.relation_scores(learned, x, y)  # noqa: E731
    expected = losses.triplet_loss(X, Y, margin=0.5, distance=compare, references=(R, Z))
    close(losses.relation_triplet_loss(X, Y, learned, references=(R, Z)), expected)


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
