"""The lines about pytorch-metric-learning in docs/from_pytorch.md, both columns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gini_jax import losses
from tests.conftest import ROOT

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
pml = pytest.importorskip(
    "pytorch_metric_learning", reason="compares with pytorch-metric-learning, not installed"
)

RNG = np.random.default_rng(1)
X, OLDER = RNG.normal(size=(2, 12, 6)).astype(np.float32)
Y, OF_OLDER = RNG.integers(0, 3, (2, 12))
PAGE = (ROOT / "docs" / "from_pytorch.md").read_text()


def tensors(*arrays):
    return [torch.tensor(x) for x in arrays]


def shown(*lines):
    """Lines that this test runs stand on the page."""
    for line in lines:
        assert f"`{line}`" in PAGE, line


def test_a_loss_and_references():
    from pytorch_metric_learning.losses import SupConLoss

    shown("SupConLoss(temperature=0.5)(x, y)", "supcon_loss(x, y, temperature=0.5)")
    shown('loss(x, y, references=(r, z), against="references")')
    loss = SupConLoss(temperature=0.5)
    x, y, r, z = tensors(X, Y, OLDER, OF_OLDER)
    own = jax.jit(losses.supcon_loss, static_argnames=("temperature", "against"))
    np.testing.assert_allclose(own(X, Y, temperature=0.5), loss(x, y), rtol=1e-5)
    theirs = loss(x, y, ref_emb=r, ref_labels=z)
    found = own(X, Y, temperature=0.5, references=(OLDER, OF_OLDER), against="references")
    np.testing.assert_allclose(found, theirs, rtol=1e-5)


def test_a_memory_of_earlier_batches():
    from pytorch_metric_learning.losses import CrossBatchMemory, SupConLoss

    shown("CrossBatchMemory(loss, C, memory_size=M)(x, y)")
    shown("loss(x, y, references=queue.examples())", "Queue.create(M, C)")
    memory = CrossBatchMemory(SupConLoss(temperature=0.5), 6, memory_size=100)
    x, y, r, z = tensors(X, Y, OLDER, OF_OLDER)
    memory(r, z)
    theirs = memory(x, y)
    queue = losses.Queue.create(100, 6).push(OLDER, OF_OLDER)
    found = losses.supcon_loss(jnp.asarray(X), Y, temperature=0.5, references=queue.examples())
    np.testing.assert_allclose(found, theirs, rtol=1e-5)


def test_reducers_and_miners():
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import SupConLoss, TripletMarginLoss
    from pytorch_metric_learning.miners import BatchHardMiner
    from pytorch_metric_learning.reducers import DoNothingReducer, MeanReducer

    shown("SupConLoss(reducer=DoNothingReducer())", 'supcon_loss(x, y, reduction="none")')
    x, y = tensors(X, Y)
    found = SupConLoss(reducer=DoNothingReducer())(x, y)["loss"]["losses"]
    values, counted = losses.supcon_loss(jnp.asarray(X), Y, reduction="none")
    np.testing.assert_allclose(values[counted], found.numpy()[np.asarray(counted)], rtol=1e-5)
    shown("TripletMarginLoss(reducer=MeanReducer())(x, y, BatchHardMiner()(x, y))")
    shown("triplet_loss(x, y, margin=0.05)")
    plain = LpDistance(normalize_embeddings=False)
    mined = BatchHardMiner(distance=plain)(x, y)
    theirs = TripletMarginLoss(distance=plain, reducer=MeanReducer())(x, y, mined)
    np.testing.assert_allclose(
        losses.triplet_loss(jnp.asarray(X), Y, margin=0.05), theirs, rtol=1e-5
    )


def test_mined_pairs():
    from pytorch_metric_learning.losses import MultiSimilarityLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner
    from pytorch_metric_learning.reducers import MeanReducer

    shown("MultiSimilarityLoss()(x, y, MultiSimilarityMiner(epsilon=0.1)(x, y))")
    shown("multi_similarity_loss(x, y, mined=True)")
    x, y = tensors(X, Y)
    x.requires_grad_()
    mined = MultiSimilarityMiner(epsilon=0.1)(x, y)
    theirs = MultiSimilarityLoss(reducer=MeanReducer())(x, y, mined)
    theirs.backward()
    own = jax.value_and_grad(lambda x: losses.multi_similarity_loss(x, Y, mined=True))
    value, gradient = jax.jit(own)(X)
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, x.grad.numpy(), atol=1e-6)
    assert abs(value - losses.multi_similarity_loss(jnp.asarray(X), Y)) > 1e-4


def test_ones_own_pairs_and_all_devices():
    shown("indices_tuple", "positives=")
    shown("DistributedLossWrapper(loss)", 'loss(x, y, axis_name="batch")')
    own = losses.supcon_loss(jnp.asarray(X), Y, positives=lambda a, b: a[:, None] == b[None, :])
    split = [jnp.asarray(a).reshape(4, 3, *a.shape[1:]) for a in (X, Y)]
    mapped = jax.pmap(
        lambda x, y: losses.supcon_loss(x, y, axis_name="batch"),
        axis_name="batch",
        devices=jax.devices()[:4],
    )(*split)
    np.testing.assert_allclose(mapped, np.full(4, own), rtol=1e-5)
