"""Evaluation over a whole split: accuracy, loss, and the terms from accumulated class sums."""

from collections.abc import Iterator, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics
from jax import lax

from gini_jax import losses
from gini_jax.augment import centre_crop
from gini_jax.data import Dataset, Split
from gini_jax.parallel import AXIS, map_over_devices, num_devices, replicate, shard
from gini_jax.step import feature_shapes


@flax.struct.dataclass
class EvalMetrics(clu_metrics.Collection):
    """Means over the examples that the mask keeps."""

    accuracy: clu_metrics.Average.from_output("correct")  # type: ignore[valid-type]
    top5: clu_metrics.Average.from_output("correct_top5")  # type: ignore[valid-type]
    loss: clu_metrics.Average.from_output("loss")  # type: ignore[valid-type]


def eval_step(
    totals: tuple[EvalMetrics, dict[str, losses.ClassSums]],
    variables: Any,
    batch: dict[str, jax.Array],
    *,
    model: nn.Module,
    layers: tuple[str, ...],
    num_classes: int,
    image_size: int,
) -> tuple[EvalMetrics, dict[str, losses.ClassSums]]:
    """Adds one batch, the same on all devices, to the totals of a split.

    Args:
        totals: metrics and class sums by layer so far.
        variables: the model's parameters and batch statistics.
        batch: this device's share: `image [n, H, W, 3]` uint8, `label [n]`, `mask [n]`.
        model: the network.
        layers: whose features the sums are taken of.
        num_classes: `K`.
        image_size: height and width that the network sees.

    Returns:
        The new totals, summed over all devices.
    """
    images = centre_crop(batch["image"], image_size)
    logits, features = model.apply(variables, images, train=False)
    labels, mask = batch["label"], batch["mask"]
    _, top = lax.top_k(logits, min(5, num_classes))
    hits = top == labels[:, None]
    metrics = EvalMetrics.single_from_model_output(
        correct=hits[:, 0],
        correct_top5=hits.any(axis=1),
        loss=optax.softmax_cross_entropy_with_integer_labels(logits, labels),
        mask=mask,
    )
    tapped = {layer: features[layer] for layer in layers}
    sums, _ = losses.layer_sums(tapped, labels, num_classes=num_classes, where=mask)
    return jax.tree.map(jnp.add, totals, lax.psum((metrics, sums), AXIS))


@jax.jit
def _results(
    totals: tuple[EvalMetrics, dict[str, losses.ClassSums]],
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Metrics and terms of a split from its totals; and by layer each feature's impurity, `[C]`."""
    metrics, sums = totals
    _, terms = losses.discriminability_from_sums(sums)
    impurity = {layer: losses.gini_impurity(s.profile()) for layer, s in sums.items()}
    return metrics.compute() | terms, impurity


class Evaluator:
    """Evaluates variables on whole splits; compiled once for all of them.

    Args:
        model: the network.
        layers: whose features the terms are computed of.
        dataset: the data, for its number of classes and image size.
        batch_size: global; the last batch of a split is padded and masked.
        devices: to divide a batch over; all by default.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: tuple[str, ...],
        dataset: Dataset,
        batch_size: int,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.layers, self.dataset, self.devices = layers, dataset, devices
        self.batch_size = batch_size

        def step(totals, variables, batch):
            return eval_step(
                totals,
                variables,
                batch,
                model=model,
                layers=layers,
                num_classes=dataset.num_classes,
                image_size=dataset.image_size,
            )

        self._step = map_over_devices(step, devices, in_axes=(None, None, 0))
        shapes = feature_shapes(model, dataset.image_size)
        self._num_features = {layer: shapes[layer].shape[-1] for layer in layers}

    def __call__(self, variables: Any, split: Split) -> tuple[dict[str, float], dict[str, Any]]:
        """Metrics and per-feature Gini impurity of a split.

        Args:
            variables: the model's, on the devices or on the host.
            split: the examples.

        Returns:
            `accuracy, top5, loss, gini, kl` over the whole split; and by layer the impurity of
            each feature, `[C]`.
        """
        num_classes = self.dataset.num_classes
        sums = {
            layer: losses.ClassSums(jnp.zeros((c, num_classes)), jnp.zeros(num_classes))
            for layer, c in self._num_features.items()
        }
        totals = replicate((EvalMetrics.empty(), sums), self.devices)
        for batch in padded_batches(split, self.batch_size, num_devices(self.devices)):
            totals = self._step(totals, variables, batch)
        values, impurity = jax.device_get(_results(jax.device_get(totals)))
        return {name: float(value) for name, value in values.items()}, impurity


def padded_batches(
    split: Split, batch_size: int, devices: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of a split in order; the last is filled up with masked copies of its first example.

    Args:
        split: the examples, of which this process's are read.
        batch_size: of the global batch.
        devices: all devices, those of other processes included.

    Yields:
        `image, label, mask`, each `[local devices, batch_size / devices, ...]`.

    Example:
        >>> split = Split(np.zeros((3, 8, 8, 3), np.uint8), np.zeros(3, np.int32))
        >>> [batch["mask"].tolist() for batch in padded_batches(split, 2)]
        [[[1.0, 1.0]], [[1.0, 0.0]]]
    """
    for start in range(0, len(split.labels), batch_size):
        stop = min(start + batch_size, len(split.labels))
        index = np.full(batch_size, start)
        index[: stop - start] = np.arange(start, stop)
        mask = (np.arange(batch_size) < stop - start).astype(np.float32)
        index, mask = shard((index, mask), devices)
        yield {"image": split.images[index], "label": split.labels[index], "mask": mask}
