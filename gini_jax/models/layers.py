"""What all networks share: activations, synchronised batch normalisation, the classifier."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "silu": nn.silu,
    "gelu": partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


class BatchNorm(nn.Module):
    """Batch normalisation over all devices, with the running variance that PyTorch keeps.

    Statistics are taken in float32 over every axis but the last, and over `axis_name`, in one
    collective. The running variance is the unbiased one (`n / (n - 1)`), as in
    torch.nn.BatchNorm2d; flax.linen.BatchNorm keeps the biased one.

    Attributes:
        axis_name: name of the mapped axis to synchronise over; None for the local batch.
        momentum: share of the old running average that is kept (1 - PyTorch's momentum).
        epsilon: added to the variance.
        dtype: type of the result; the parameters stay in float32.
    """

    axis_name: Hashable | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        max_pool: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """Normalises `x`, `[..., C]`; in training by the batch's statistics, which it records.

        Args:
            x: the activations.
            train: whether to use and record the batch's statistics.
            max_pool: max pooling to apply to the result. It is done first, for normalisation is
                monotone in each channel: the large normalised array is then never formed.
        """
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if not train:
            mean, var = running_mean.value, running_var.value
        else:
            x32 = x.astype(jnp.float32)
            axes = tuple(range(x.ndim - 1))
            sums = jnp.stack([x32.sum(axes), jnp.square(x32).sum(axes)])
            count = x.size // x.shape[-1]
            if self.axis_name is not None and not self.is_initializing():
                sums = lax.psum(sums, self.axis_name)
                count *= lax.axis_size(self.axis_name)
            mean, mean_square = sums / float(count)
            var = jnp.maximum(mean_square - jnp.square(mean), 0.0)
            if not self.is_initializing():
                keep = self.momentum
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        if max_pool is not None:
            sign = jnp.where(scale < 0, -1, 1).astype(x.dtype)
            x = max_pool(x * sign) * sign
        factor = scale * lax.rsqrt(var + self.epsilon)
        return (x.astype(jnp.float32) * factor + (bias - mean * factor)).astype(self.dtype)


class Classifier(nn.Module):
    """Dropout and the last linear layer, computed in float32.

    Attributes:
        num_classes: `K`.
        dropout: share of the features that training sets to zero.
    """

    num_classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, pooled: jax.Array, *, train: bool) -> jax.Array:
        """Logits `[N, K]` of pooled features `[N, C]`."""
        pooled = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="dense")(pooled)
