"""Parts that all networks share: activations, batch normalisation, dropout, the classifier."""

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from gini_jax.config.registry import Setting, settings_of

Activation: TypeAlias = Literal["relu", "relu6", "silu", "gelu", "quick_gelu"]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "silu": nn.silu,
    "gelu": partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


class NetworkSpec(NamedTuple):
    """An entry of the table of networks.

    Attributes:
        module: the class.
        values: its attributes that differ from the class's defaults.
        dialects: for each PyTorch naming, the rules from our paths to its names; see
            `torch_weights`.
        infer: a function from PyTorch weights by name to the settings that their shapes imply.
        library: the library that uses the first of these namings.
        original: that library's values of settings that the weights do not reveal.
    """

    module: type[nn.Module]
    values: Mapping[str, Any] = {}
    dialects: Mapping[str, list[tuple[str, str]]] = {}
    infer: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda weights: {}
    library: str = "PyTorch"
    original: Mapping[str, Any] = {}

    @property
    def settings(self) -> dict[str, Setting]:
        """The network's own settings: the fields of its module.

        Examples:
            >>> from gini_jax.models import MODELS
            >>> MODELS["resnet18"].settings["width"].bounds
            '[1, inf)'
        """
        rows = settings_of(self.module)
        return {k: row._replace(default=self.values.get(k, row.default)) for k, row in rows.items()}


def perturbed(network: nn.Module, layer: str, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """A layer's activations, plus the array of the collection `perturbations`, if there is one.

    If that array is zero, its gradient is the gradient of the layer's activations. Flax's own
    `perturb` also works, but adds zeros of the batch's size to what `init` returns.
    """
    there = network.has_variable("perturbations", layer)
    return network.perturb(layer, x) if there else x


class BatchNorm(nn.Module):
    """Batch normalisation over all devices, with the running variance that PyTorch keeps.

    Statistics are taken in float32 (float64 for float64 input) over every axis but the last, and
    over `axis_name`, in one collective. The running variance is the unbiased one (`n / (n - 1)`),
    as in torch.nn.BatchNorm2d; flax.linen.BatchNorm keeps the biased one.

    Attributes:
        axis_name: the mapped axis to synchronise over; None to use the local batch only.
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
        x: Float[Array, "*shape C"],
        *,
        train: bool,
        max_pool: Callable[[jax.Array], jax.Array] | None = None,
    ) -> Float[Array, "... C"]:
        """Normalises `x`, `[..., C]`; in training with the batch's statistics, which it records.

        Args:
            x: the activations.
            train: whether to use and record the batch's statistics.
            max_pool: max pooling to apply to the result. It runs before the normalisation, so the
                large normalised array is never formed; the result is the same, because
                normalisation is monotone in each channel.
        """
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if not train:
            mean, var = running_mean.value, running_var.value
        else:
            wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            axes = tuple(range(x.ndim - 1))
            sums = jnp.stack([wide.sum(axes), jnp.square(wide).sum(axes)])
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
        return (x.astype(factor.dtype) * factor + (bias - mean * factor)).astype(self.dtype)


class Dropout(nn.Module):
    """Dropout whose masks belong to the examples, not to the devices that hold them.

    An example's mask depends only on the step's key and the example's place in the global batch.
    So it is the same on any number of devices and in any number of micro-batches.

    Attributes:
        rate: probability of dropping.
        broadcast: whether to drop whole examples, as stochastic depth does (arXiv 1603.09382).
    """

    rate: float
    broadcast: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "N ..."], example_index: Int[Array, " N"] | None, *, train: bool
    ) -> Float[Array, "N ..."]:
        """`[N, ...]` with zeros at probability `rate`, the rest scaled up by `1 / (1 - rate)`.

        Args:
            x: activations.
            example_index: `[N]` integers, each example's place in the global batch; 0, 1, ... if
                None.
            train: whether to drop.
        """
        if not train or not self.rate:
            return x
        if example_index is None:
            example_index = jnp.arange(x.shape[0])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), example_index)
        shape = (1,) * (x.ndim - 1) if self.broadcast else x.shape[1:]
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, shape))(keys)
        return jnp.where(kept, x / (1 - self.rate), jnp.zeros_like(x))


# The field `head` of a network.
Head: TypeAlias = Literal["auto", "linear", "cosine", "probe"]


class CosineDense(nn.Module):
    """A linear layer without bias, of normalised inputs and weights, times a scale.

    Attributes:
        features: `K`.
        scale: what the cosines are multiplied by.

    References:
        Wang et al., "CosFace" (arXiv 1801.09414), section 3.1.
    """

    features: int
    scale: float

    @nn.compact
    def __call__(self, x: Float[Array, "N C"]) -> Float[Array, "N K"]:
        """`scale` times the cosines, `[N, features]`; 0 where the input is all zeros."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return self.scale * _unit(x, axis=1) @ _unit(kernel, axis=0)


def _unit(x: jax.Array, axis: int) -> jax.Array:
    square = jnp.square(x).sum(axis=axis, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(square, 1e-12))


def linear_head(variables: Mapping[str, Any]) -> np.ndarray | None:
    """The weights `[C, K]` of a linear last layer; None if there is no `head/dense` with a bias.

    Examples:
        >>> dense = {"kernel": np.zeros((8, 3)), "bias": np.zeros(3)}
        >>> linear_head({"params": {"head": {"dense": dense}}}).shape
        (8, 3)
    """
    parameters = variables["params"].get("head", {}).get("dense", {})
    return np.asarray(parameters["kernel"]) if "bias" in parameters else None


class Classifier(nn.Module):
    """Dropout and the last layer, computed in float32.

    Attributes:
        num_classes: `K`.
        dropout: share of the features set to zero in training.
        head: the kind of the last layer; `auto` is linear.
        scale: of a cosine head.
    """

    num_classes: int
    dropout: float = 0.0
    head: Head = "linear"
    scale: float = 16.0

    @nn.compact
    def __call__(
        self,
        pooled: Float[Array, "N C"],
        *,
        train: bool,
        example_index: Int[Array, " N"] | None = None,
    ) -> Float[Array, "N K"]:
        """Logits `[N, K]` of pooled features `[N, C]`; `example_index` as in `Dropout`."""
        pooled = Dropout(self.dropout)(pooled, example_index, train=train)
        if self.head == "cosine":
            return CosineDense(self.num_classes, self.scale, name="dense")(pooled)
        if self.head == "probe":
            pooled = lax.stop_gradient(pooled)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="dense")(pooled)
