"""Values that are no labels, cosines or settings are refused; extreme ones stay exact."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gini_jax import losses
from tests.helpers import baselines

X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
INTEGERS = jnp.array([0, 1, 2, 0, 1, 2])
COSINES = jnp.tanh(X[:, :3])


def test_proxy_anchor_is_a_logsumexp_and_stays_finite():
    """Each proxy: its own example at cosine -1, the two others at 0; by hand."""
    for alpha in (32.0, 100.0, 1000.0):
        value, gradient = jax.value_and_grad(losses.proxy_anchor_loss)(
            -jnp.eye(3), jnp.arange(3), jnp.eye(3), alpha=alpha
        )
        near, far = alpha * 1.1, np.logaddexp(0.0, np.log(2) + alpha * 0.1)
        np.testing.assert_allclose(value, np.logaddexp(0.0, near) + far, rtol=1e-6)
        assert np.isfinite(gradient).all()


def test_proxy_anchor_on_four_devices_stays_finite_too():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 4)), jnp.float32)
    labels = jnp.arange(8) % 3
    expected = losses.proxy_anchor_loss(x, labels, baselines.PROXIES[:3, :4], alpha=1000.0)

    def of_device(x, labels):
        return losses.proxy_anchor_loss(
            x, labels, baselines.PROXIES[:3, :4], alpha=1000.0, axis_name="batch"
        )

    step = jax.pmap(jax.value_and_grad(of_device), "batch")
    value, gradient = step(x.reshape(4, 2, 4), labels.reshape(4, 2))
    np.testing.assert_allclose(value, np.full(4, expected), rtol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("loss", [losses.arcface_loss, losses.cosface_loss])
def test_without_a_margin_the_gradient_is_that_of_cross_entropy_also_at_the_ends(loss):
    cosines = jnp.array([[1.0, 0.0], [-1.0, 0.5], [1.0, 1.0]])
    labels = jnp.array([0, 0, 1])

    def cross_entropy(cosines):
        return optax.softmax_cross_entropy_with_integer_labels(10 * cosines, labels).mean()

    found = jax.grad(loss)(cosines, labels, scale=10.0, margin=0.0)
    np.testing.assert_allclose(found, jax.grad(cross_entropy)(cosines), rtol=1e-5, atol=1e-7)


def test_narrow_clusters_far_apart_keep_their_distances():
    rng = np.random.default_rng(0)
    x = np.concatenate([side + 0.01 * rng.normal(size=(8, 4)) for side in (1000, -1000)])
    x, labels = x.astype(np.float32), np.arange(16) % 4
    distances = np.linalg.norm(np.float64(x)[:, None] - np.float64(x)[None], axis=2)
    values = []
    for a, p in np.argwhere((labels[:, None] == labels) & ~np.eye(16, dtype=bool)):
        others = distances[a][labels != labels[a]]
        farther = others[others > distances[a, p]]
        values.append(distances[a, p] - (farther.min() if len(farther) else others.max()) + 0.2)
    expected = np.maximum(values, 0).mean()
    for chunk_size in (None, 1, 5):
        found = losses.triplet_loss(x, labels, triplets="semi-hard", chunk_size=chunk_size)
        np.testing.assert_allclose(found, expected, rtol=2e-4)


IDS = {
    "above 2**24": 2**24 + np.arange(8, dtype=np.int32).repeat(2),
    "near 2**31": (2**31 - 9 + np.arange(8)).astype(np.int32).repeat(2),
    "unsigned": (2**32 - 9 + np.arange(8)).astype(np.uint32).repeat(2),
    "short": np.arange(8, dtype=np.int8).repeat(2),
}


@pytest.mark.parametrize("kind", IDS)
def test_class_ids_stay_apart_on_four_devices(kind):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(16, 4)), jnp.float32)
    expected, gradient = jax.value_and_grad(losses.supcon_loss)(x, jnp.arange(8).repeat(2))

    def of_device(x, ids):
        value, gradient = jax.value_and_grad(losses.supcon_loss)(x, ids, axis_name="batch")
        return value, gradient / 4

    found, own = jax.pmap(of_device, "batch")(x.reshape(4, 4, 4), IDS[kind].reshape(4, 4))
    np.testing.assert_allclose(found, np.full(4, expected), rtol=1e-6)
    np.testing.assert_allclose(own.reshape(16, 4), gradient, rtol=1e-5, atol=1e-7)


def test_class_ids_of_64_bits_stay_apart_on_four_devices():
    ids = 2**40 + np.arange(8).repeat(2)
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(2).normal(size=(16, 4)))
        expected = losses.supcon_loss(x, jnp.arange(8).repeat(2))
        step = jax.pmap(lambda x, ids: losses.supcon_loss(x, ids, axis_name="batch"), "batch")
        found = step(x.reshape(4, 4, 4), ids.reshape(4, 4))
    np.testing.assert_allclose(found, np.full(4, expected), rtol=1e-12)


@pytest.mark.slow
def test_forward_mode_passes_the_gathering_of_features():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(8, 4)), jnp.float32)
    labels = jnp.arange(8) % 2

    def on_four(x):
        of_device = lambda x, y: losses.supcon_loss(x, y, axis_name="batch")  # noqa: E731
        return jax.vmap(of_device, axis_name="batch")(x.reshape(4, 2, 4), labels.reshape(4, 2))[0]

    expected = jax.hessian(lambda x: losses.supcon_loss(x, labels))(x)
    np.testing.assert_allclose(jax.hessian(on_four)(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32"])
def test_labels_of_any_integer_type_count_alike(dtype):
    """200 classes do not fit in int8, and -1, which is no class, must not become one."""
    labels = np.array([0, 5, 100, 7, 7, 100])
    expected = losses.class_sums(X, jnp.asarray(labels), num_classes=200).activation
    found = losses.class_sums(X, jnp.asarray(labels, dtype), num_classes=200).activation
    np.testing.assert_array_equal(found, expected)
    if dtype.startswith("int"):
        labels[0] = -1
        sums = losses.class_sums(X, jnp.asarray(labels, dtype), num_classes=256)
        assert sums.mass.sum() == 5
        assert sums.mass[255] == 0


def test_a_negative_integer_is_left_out_of_losses_of_logits_and_proxies():
    labels = INTEGERS.at[4:].set(-1)
    proxies = baselines.PROXIES[:3, :4]
    for found, expected in (
        (losses.cosface_loss(COSINES, labels), losses.cosface_loss(COSINES[:4], labels[:4])),
        (
            losses.hierarchy_loss(X, labels, [0, 0, 1, 1]),
            losses.hierarchy_loss(X[:4], labels[:4], [0, 0, 1, 1]),
        ),
        (
            losses.proxy_anchor_loss(X, labels, proxies),
            losses.proxy_anchor_loss(X[:4], labels[:4], proxies),
        ),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


COLUMN = INTEGERS[:, None]
LOGITS = jnp.asarray(np.random.default_rng(3).normal(size=(6, 3)), jnp.float32)
WRONG = {
    "arcface margin in degrees": (
        lambda: losses.arcface_loss(COSINES, INTEGERS, margin=28.6),
        "margin=28.6 .* radians, and 28.6 degrees are 0.4992",
    ),
    "cosface margin below 0": (
        lambda: losses.cosface_loss(COSINES, INTEGERS, margin=-1),
        r"margin=-1 must lie in \[0, inf\)",
    ),
    "infinite scale": (
        lambda: losses.cosface_loss(COSINES, INTEGERS, scale=float("inf")),
        r"scale=inf must lie in \(0, inf\)",
    ),
    "scale that is no number": (
        lambda: losses.cosface_loss(COSINES, INTEGERS, scale=jnp.array(jnp.nan)),
        "scale=.*nan.* must lie",
    ),
    "triplet margin below 0": (
        lambda: losses.triplet_loss(X, INTEGERS, margin=-0.1),
        "margin=-0.1",
    ),
    "relation margin below 0": (
        lambda: losses.relation_triplet_loss(
            X, INTEGERS, losses.Comparator.create(jax.random.key(0), 4), margin=-0.1
        ),
        "margin=-0.1",
    ),
    "proxy anchor alpha": (
        lambda: losses.proxy_anchor_loss(X, INTEGERS, baselines.PROXIES[:3, :4], alpha=-1.0),
        "alpha=-1.0",
    ),
    "nt-xent temperature": (lambda: losses.nt_xent_loss(X, X, temperature=0), "temperature=0"),
    "hierarchy weight": (
        lambda: losses.hierarchy_loss(LOGITS, INTEGERS, [0, 0, 1], coarse_weight=-1.0),
        "coarse_weight=-1.0",
    ),
    "hierarchy superclass": (
        lambda: losses.hierarchy_loss(LOGITS, INTEGERS, [0, -1, 1]),
        "superclasses hold integers outside",
    ),
    "supcon of a column": (lambda: losses.supcon_loss(X, COLUMN), r"labels\[:, 0\]"),
    "triplet of a column": (lambda: losses.triplet_loss(X, COLUMN), r"labels\[:, 0\]"),
    "multi-similarity of a column": (
        lambda: losses.multi_similarity_loss(X, COLUMN.astype(float)),
        r"labels\[:, 0\]",
    ),
    "gini of a column": (lambda: losses.gini_loss(X, COLUMN), r"labels\[:, 0\]"),
    "supcon of logits": (lambda: losses.supcon_loss(X, LOGITS), r"outside \[0, 1\]"),
    "gini of logits": (lambda: losses.gini_loss(X, LOGITS), r"outside \[0, 1\]"),
    "center of NaN": (
        lambda: losses.center_loss(X, jnp.full((6, 3), jnp.nan)),
        r"outside \[0, 1\]",
    ),
    "proxy anchor of logits": (
        lambda: losses.proxy_anchor_loss(X, LOGITS, baselines.PROXIES[:3, :4]),
        r"outside \[0, 1\]",
    ),
    "gini beyond the classes": (
        lambda: losses.gini_loss(X, INTEGERS, num_classes=2),
        "2 or more, but num_classes=2",
    ),
    "cosface beyond the classes": (
        lambda: losses.cosface_loss(COSINES, INTEGERS + 1),
        "3 or more, but num_classes=3",
    ),
    "arcface of features": (
        lambda: losses.arcface_loss(80 * COSINES, INTEGERS),
        r"outside \[-1, 1\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_known_values_that_break_a_rule_are_refused(case):
    call, text = WRONG[case]
    with pytest.raises(ValueError, match=text):
        call()


def test_rows_of_weight_0_may_hold_anything():
    mask = jnp.arange(6) < 4
    labels = jnp.eye(3)[INTEGERS].at[4:].set(jnp.nan)
    np.testing.assert_allclose(
        losses.gini_loss(X, labels, where=mask), losses.gini_loss(X[:4], labels[:4]), rtol=1e-6
    )
    far = COSINES.at[4:].set(80.0)
    found = losses.arcface_loss(far, INTEGERS.at[4:].set(9), where=mask)
    np.testing.assert_allclose(found, losses.arcface_loss(far[:4], INTEGERS[:4]), rtol=1e-6)


TRACED = {
    "rows": (losses.supcon_loss, (X, LOGITS), "outside [0, 1]"),
    "cosines": (losses.cosface_loss, (80 * COSINES, INTEGERS), "outside [-1, 1]"),
    "integers": (losses.cosface_loss, (COSINES, INTEGERS + 1), "3 or more"),
}


@pytest.mark.parametrize("case", TRACED)
def test_the_checked_form_tells_of_traced_values(case):
    loss, arrays, text = TRACED[case]
    error, _ = jax.jit(losses.checked(loss))(*arrays)
    assert text in error.get()
    jax.jit(loss)(*arrays)  # which can't know them
    error, value = jax.jit(losses.checked(loss))(arrays[0] / 100, INTEGERS)
    assert error.get() is None
    np.testing.assert_allclose(value, loss(arrays[0] / 100, INTEGERS), rtol=1e-6)


def test_a_tiny_share_of_a_large_exponent_keeps_its_digits():
    """Soft rows: a share of 1e-9 of the wrong class, in float64 NumPy."""
    x = jnp.array([[-1.0, 0.05], [-1.0, 0.02]])
    for share in (1e-9, 1e-7, 1e-3):
        rows = jnp.array([[share, 1 - share]] * 2)
        value, gradient = jax.value_and_grad(losses.proxy_anchor_loss)(x, rows, jnp.eye(2))
        unit = np.float64(x) / np.linalg.norm(np.float64(x), axis=1, keepdims=True)
        near = (np.float64(rows) * np.exp(-32 * (unit - 0.1))).sum(axis=0)
        away = ((1 - np.float64(rows)) * np.exp(32 * (unit + 0.1))).sum(axis=0)
        expected = np.log1p(near).sum() / 2 + np.log1p(away).mean()
        np.testing.assert_allclose(value, expected, rtol=1e-4)
        assert np.isfinite(gradient).all()


def test_the_checked_form_also_sees_into_functions_that_are_already_compiled():
    compiled = jax.jit(losses.supcon_loss)
    onehot = jnp.eye(3)[INTEGERS]
    expected = compiled(X, onehot)
    if hasattr(jax, "make_user_context"):
        error, _ = losses.checked(compiled)(X, LOGITS)
        assert "outside [0, 1]" in error.get()
    np.testing.assert_allclose(compiled(X, onehot), expected)  # and it still works without checks


@pytest.mark.parametrize("value", [-1.0, 0.0, jnp.inf, jnp.nan])
def test_the_checked_form_tells_of_traced_settings(value):
    def loss(temperature):
        return losses.supcon_loss(X, INTEGERS, temperature=temperature)

    error, _ = jax.jit(losses.checked(loss))(value)
    assert "temperature must lie in (0, inf)" in error.get()
    target = jnp.array([0.5, 0.6, -0.1])
    loss = lambda target: losses.kl_loss(X, INTEGERS, num_classes=3, target=target)  # noqa: E731
    assert "not a distribution" in jax.jit(losses.checked(loss))(target)[0].get()


def test_labels_of_numpy_are_known_inside_of_jit():
    with pytest.raises(ValueError, match="3 or more"):
        jax.jit(lambda c: losses.cosface_loss(c, np.asarray(INTEGERS) + 1))(COSINES)
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        jax.jit(lambda x: losses.supcon_loss(x, np.asarray(LOGITS)))(X)


def test_integers_of_64_bits_are_refused_where_jax_would_cut_them():
    with pytest.raises(ValueError, match="need 64 bits; set jax_enable_x64, or number them anew"):
        losses.supcon_loss(X, np.array([0, 1, 2**32 + 1, 0, 1, 2]))


@pytest.mark.parametrize(
    "where", [-np.ones(6), np.array([1, 1, np.nan, 1, 1, 1]), np.full(6, np.inf)]
)
def test_weights_that_are_none_are_refused(where):
    for loss in (losses.gini_loss, losses.center_loss):
        with pytest.raises(ValueError, match="where holds numbers that are negative or not finite"):
            loss(X, INTEGERS, num_classes=3, where=jnp.asarray(where))


def test_distances_beyond_1e30_are_no_infinity():
    x = jnp.array([[0.0], [1.0], [3.0]]) * 1e16
    found = losses.triplet_loss(x, jnp.array([0, 0, 1]), distance="squared", margin=0.0)
    assert found == 0  # 1 against 9, and 1 against 4, times 1e32


@pytest.mark.parametrize("name", ["fisher", "renyi", "triplet hard", "triplet all", "center"])
def test_features_that_are_nan_give_nan(name):
    x = X.at[2].set(jnp.nan)
    loss = baselines.LOSSES.get(name, losses.renyi_loss)
    assert np.isnan(loss(x, INTEGERS, num_classes=3))


def test_rows_of_zeros_are_of_no_class_in_pairs():
    onehot = jnp.eye(3)[INTEGERS].at[4:].set(0)
    expected = losses.supcon_loss(X[:4], INTEGERS[:4])
    np.testing.assert_allclose(losses.supcon_loss(X, onehot), expected, rtol=1e-6)


def test_both_views_of_an_image_count_as_the_first():
    where = jnp.array([1, 1, 0, 1, 1, 1])
    projection = losses.Projection.create(jax.random.key(0), 4)
    found = losses.simclr_loss(X.at[2].set(jnp.nan), None, projection, where=where)
    rest = X[jnp.array([0, 1, 3, 4])]
    np.testing.assert_allclose(found, losses.simclr_loss(rest, None, projection), rtol=1e-6)


def test_a_class_that_is_ruled_out_adds_nothing():
    logits = jnp.array([[1.0, 0.0, -jnp.inf]])
    found = losses.hierarchy_loss(logits, jnp.array([0]), [0, 1, 1])
    np.testing.assert_allclose(found, np.log1p(np.exp(-1.0)), rtol=1e-6)
