"""What the method promises, stated as laws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gini_jax import losses

LOSSES = [
    losses.gini_loss,
    losses.kl_loss,
    partial(losses.kl_loss, target="present"),
    losses.entropy_loss,
    losses.renyi_loss,
    losses.mutual_information_loss,
]


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.gamma(1.0, size=(32, 2, 2, 12)), jnp.float32)
    return features, jnp.asarray(np.eye(5)[rng.integers(0, 5, 32)], jnp.float32)


@pytest.mark.parametrize("loss", LOSSES)
def test_order_of_examples_and_of_features_does_not_matter(loss, batch):
    features, onehot = batch
    rng = np.random.default_rng(1)
    examples, channels = rng.permutation(32), rng.permutation(12)
    shuffled = loss(features[examples][..., channels], onehot[examples])
    np.testing.assert_allclose(shuffled, loss(features, onehot), rtol=1e-5, atol=1e-6)


def test_scaling_one_feature_leaves_its_profile(batch):
    features, onehot = batch
    scaled = features.at[..., 3].multiply(1000.0)
    before, after = (losses.class_profile(f, onehot) for f in (features, scaled))
    np.testing.assert_allclose(after, before, rtol=1e-5)


def test_doubling_one_class_leaves_the_profile(batch):
    features, onehot = batch
    again = onehot[:, 2] == 1
    doubled = losses.class_profile(
        jnp.concatenate([features, features[again]]), jnp.concatenate([onehot, onehot[again]])
    )
    np.testing.assert_allclose(doubled, losses.class_profile(features, onehot), rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_padded_and_masked_batch_equals_the_batch(loss, batch):
    features, onehot = batch
    mask = jnp.arange(32) < 20
    np.testing.assert_allclose(
        loss(features, onehot, where=mask), loss(features[:20], onehot[:20]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_integers_equal_their_one_hot_rows(loss, batch):
    features, onehot = batch
    labels = onehot.argmax(axis=1)
    np.testing.assert_allclose(
        loss(features, labels, num_classes=5), loss(features, onehot), rtol=1e-5, atol=1e-6
    )


def test_an_integer_outside_the_classes_belongs_to_none(batch):
    features, onehot = batch
    labels = onehot.argmax(axis=1)
    outside = labels.at[:4].set(jnp.array([-1, 5, -7, 99]))  # those of 5 and more, where traced
    sums = jax.jit(partial(losses.class_sums, num_classes=5))(features, outside)
    rest = losses.class_sums(features[4:], labels[4:], num_classes=5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), sums, rest)


def test_soft_labels_enter_linearly_in_the_sums(batch):
    features, onehot = batch
    other = jnp.roll(onehot, 1, axis=0)
    mixed = losses.class_sums(features, 0.3 * onehot + 0.7 * other)
    a, b = losses.class_sums(features, onehot), losses.class_sums(features, other)
    np.testing.assert_allclose(mixed.activation, 0.3 * a.activation + 0.7 * b.activation, rtol=1e-5)


def test_gini_is_0_for_perfectly_discriminative_features():
    assert losses.gini_loss(jnp.eye(6), jnp.eye(6)) == 0.0


def test_gini_is_1_minus_1_over_k_for_uniform_features():
    np.testing.assert_allclose(losses.gini_loss(jnp.ones((7, 3)), jnp.eye(7)), 6 / 7, rtol=1e-6)


def test_kl_is_0_when_the_distributions_agree_and_positive_when_they_do_not():
    assert losses.kl_loss(jnp.eye(4), jnp.eye(4)) == 0.0
    features = jnp.eye(4)[:, jnp.array([0, 0, 1, 2, 3])]  # two features for class 0
    assert losses.kl_loss(features, jnp.eye(4)) > 0.01
    agrees = jnp.array([0.4, 0.2, 0.2, 0.2])
    np.testing.assert_allclose(losses.kl_loss(features, jnp.eye(4), target=agrees), 0, atol=1e-7)


def test_kl_is_never_negative():
    rng = np.random.default_rng(2)
    loss = jax.jit(losses.kl_loss)
    for scale in rng.uniform(0, 1e-3, 300):
        features = jnp.asarray(1 + scale * rng.normal(size=(10, 4)), jnp.float32)
        assert loss(features, jnp.eye(10)) >= 0


def test_a_dead_feature_counts_as_impurity_1_with_zero_gradient():
    features = jnp.stack([jnp.array([1.0, 0.0, 0.0]), jnp.zeros(3)], axis=1)
    value, gradient = jax.jit(jax.value_and_grad(losses.gini_loss))(features, jnp.eye(3))
    assert value == 0.5
    assert (gradient[:, 1] == 0).all()
    assert (jax.jit(jax.grad(losses.kl_loss))(features, jnp.eye(3))[:, 1] == 0).all()


# ------------------------------------------------------------- half batches on several devices


def _loss(scale, features, onehot, axis_name=None):
    """A parameter `scale [C]` whose gradient is non-trivial, and the joint loss."""
    activations = jnp.tanh(features * scale)
    return losses.discriminability_loss(
        [activations, activations.mean((1, 2))], onehot, axis_name=axis_name
    )[0]


_whole = jax.jit(jax.value_and_grad(_loss))


def _split(array, devices):
    return array.reshape((devices, -1, *array.shape[1:]))


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("mapping", ["pmap", "vmap", "shard_map"])
def test_parts_on_several_devices_equal_the_whole(mapping, devices, batch):
    features, onehot = batch
    scale = jnp.linspace(0.5, 1.5, 12)
    expected = _whole(scale, features, onehot)

    def step(scale, features, onehot):
        value, gradient = jax.value_and_grad(_loss)(scale, features, onehot, axis_name="i")
        return value, jax.lax.pmean(gradient, "i")

    if mapping == "shard_map":
        if not hasattr(jax, "shard_map"):
            pytest.skip("jax.shard_map is newer than jax 0.6.0")
        mesh = Mesh(np.array(jax.devices()[:devices]), ("i",))
        mapped = jax.shard_map(
            step, mesh=mesh, in_specs=(P(), P("i"), P("i")), out_specs=(P(), P())
        )
        value, gradient = jax.jit(mapped)(scale, features, onehot)
    else:
        transform = {
            "pmap": partial(jax.pmap, devices=jax.devices()[:devices]),
            "vmap": lambda step, **axes: jax.jit(jax.vmap(step, **axes)),
        }[mapping]
        mapped = transform(step, in_axes=(None, 0, 0), axis_name="i")
        values, gradients = mapped(scale, _split(features, devices), _split(onehot, devices))
        value, gradient = values[-1], gradients[-1]
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-4, atol=1e-7)


def test_several_axis_names_sum_over_all_of_them(batch):
    features, onehot = batch
    inner = jax.vmap(partial(losses.gini_loss, axis_name=("a", "b")), axis_name="b")
    outer = jax.vmap(inner, axis_name="a")
    parts = [x.reshape((2, 4, 4, *x.shape[1:])) for x in (features, onehot)]
    np.testing.assert_allclose(outer(*parts), losses.gini_loss(features, onehot), rtol=1e-5)


# ------------------------------------------------------------- signal and noise of the terms


def expected_kl_of_counts(num_classes, examples):
    """E KL(counts || uniform over the classes present), in closed form.

    `E sum_k (n_k/N) log(n_k/N) + E log(number of classes present)`: the counts are binomial, and
    the number of classes present has the occupancy distribution.
    """
    n = np.arange(1, examples + 1)
    share = n / examples
    pmf = scipy.stats.binom.pmf(n, examples, 1 / num_classes)
    entropy = num_classes * (pmf * share * np.log(share)).sum()
    present = np.zeros(num_classes + 1)
    present[0] = 1.0
    for _ in range(examples):  # one example after the other: of a class that is there, or a new one
        there = np.arange(num_classes + 1) / num_classes
        present = present * there + np.concatenate([[0.0], (present * (1 - there))[:-1]])
    return entropy + (present[1:] * np.log(np.arange(1, num_classes + 1))).sum()


@pytest.mark.parametrize(
    ("examples", "told"), [(32, 0.049), (64, 0.086), (128, 0.126), (256, 0.136), (512, 0.095)]
)
def test_the_kl_of_a_batch_is_the_sampling_noise_of_its_counts(examples, told):
    """For features that serve all classes alike, so that nothing but noise is left."""
    expected = expected_kl_of_counts(100, examples)
    assert abs(expected - told) < 6e-4
    rng = np.random.default_rng(0)
    features = jnp.ones((examples, 3))

    @jax.jit
    @jax.vmap
    def both(labels):
        kinds = (None, "present")
        return [losses.kl_loss(features, labels, num_classes=100, target=t) for t in kinds]

    batch, present = both(jnp.asarray(rng.integers(0, 100, (2000, examples))))
    error = batch.std() / np.sqrt(2000)
    assert abs(batch.mean() - expected) < 4 * error
    np.testing.assert_allclose(present, 0, atol=1e-6)


@pytest.mark.parametrize("num_classes", [10, 1000])
def test_renyis_gradient_does_not_shrink_with_the_number_of_classes(num_classes):
    """`2 sqrt(v / (1 + v))` by the relative class means; that of Gini is K / (1 + v) times less."""
    rng = np.random.default_rng(1)
    means = rng.gamma(2.0, size=num_classes)
    relative = jnp.asarray(means / means.mean(), jnp.float32)
    v = float(jnp.square(relative).mean() - 1)

    def norm(loss):
        gradient = jax.jit(jax.grad(lambda r: loss(r[:, None], jnp.eye(num_classes))))(relative)
        return float(jnp.linalg.norm(gradient) * np.sqrt(num_classes))

    np.testing.assert_allclose(norm(losses.renyi_loss), 2 * np.sqrt(v / (1 + v)), rtol=1e-3)
    expected = 2 * np.sqrt(v * (1 + v)) / num_classes
    np.testing.assert_allclose(norm(losses.gini_loss), expected, rtol=1e-3)
    entropy = np.log(num_classes) - np.log1p(v)
    np.testing.assert_allclose(
        jax.jit(losses.renyi_loss)(relative[:, None], jnp.eye(num_classes)), entropy, rtol=1e-5
    )


def test_a_target_is_a_known_name_or_numbers():
    with pytest.raises(ValueError, match="one of 'batch', 'present'"):
        losses.kl_loss(jnp.ones((2, 3)), jnp.eye(2), target="uniform")
    same = [losses.kl_loss(jnp.ones((2, 3)), jnp.eye(2), target=t) for t in (None, "batch")]
    assert same[0] == same[1]
