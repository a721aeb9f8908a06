"""Residual networks with a tap at every stage (He et al., arXiv 1512.03385)."""

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gini_jax.models.layers import ACTIVATIONS, BatchNorm, Classifier

# PyTorch's default; after an epoch of CIFAR-100 it is ahead of He's initialisation.
_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


_max_pool = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class ConvNorm(nn.Module):
    """A convolution without bias, padded as PyTorch pads it, and its batch normalisation.

    With `max_pool` a 3x3 max pool with stride 2 follows.
    """

    channels: int
    kernel: int
    stride: int = 1
    max_pool: bool = False
    axis_name: Hashable | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[N, H, W, C]` to `[N, H', W', channels]`."""
        pad = (self.kernel - 1) // 2
        x = nn.Conv(
            self.channels,
            (self.kernel, self.kernel),
            strides=self.stride,
            padding=((pad, pad), (pad, pad)),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=_kernel_init,
            name="conv",
        )(x)
        norm = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name="norm")
        return norm(x, train=train, max_pool=_max_pool if self.max_pool else None)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    channels: int
    stride: int = 1
    activation: str = "relu"
    axis_name: Hashable | None = None
    dtype: Any = jnp.float32
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[N, H, W, C]` to `[N, H / stride, W / stride, channels]`."""
        act = ACTIVATIONS[self.activation]
        shared = {"axis_name": self.axis_name, "dtype": self.dtype}
        y = ConvNorm(self.channels, 3, self.stride, **shared, name="conv1")(x, train=train)
        y = ConvNorm(self.channels, 3, **shared, name="conv2")(act(y), train=train)
        return act(y + _shortcut(x, self.channels, self.stride, shared, train))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a shortcut; widens by 4."""

    channels: int
    stride: int = 1
    activation: str = "relu"
    axis_name: Hashable | None = None
    dtype: Any = jnp.float32
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[N, H, W, C]` to `[N, H / stride, W / stride, 4 * channels]`."""
        act = ACTIVATIONS[self.activation]
        shared = {"axis_name": self.axis_name, "dtype": self.dtype}
        y = ConvNorm(self.channels, 1, **shared, name="conv1")(x, train=train)
        y = ConvNorm(self.channels, 3, self.stride, **shared, name="conv2")(act(y), train=train)
        y = ConvNorm(4 * self.channels, 1, **shared, name="conv3")(act(y), train=train)
        return act(y + _shortcut(x, 4 * self.channels, self.stride, shared, train))


def _shortcut(x, channels: int, stride: int, shared: dict[str, Any], train: bool) -> jax.Array:
    if stride == 1 and x.shape[-1] == channels:
        return x
    return ConvNorm(channels, 1, stride, **shared, name="shortcut")(x, train=train)


BLOCKS = {"basic": BasicBlock, "bottleneck": BottleneckBlock}


class ResNet(nn.Module):
    """A residual network of four stages.

    Attributes:
        num_classes: `K`.
        block: `"basic"` or `"bottleneck"`.
        blocks: blocks in each of the four stages.
        width: channels of the first stage, before the block's expansion; doubled at each stage.
        stem: `"cifar"`, a 3x3 convolution with stride 1, or `"imagenet"`, a 7x7 convolution with
            stride 2 and a 3x3 max pool.
        activation: one of `ACTIVATIONS`; with a smooth one such as `"silu"` rounding flips no
            gradient, and a run ends alike on any number of devices.
        dropout: before the last layer.
        remat: recompute the blocks' activations in the backward pass to save memory.
        dtype: type of the computation; parameters and logits are float32.
        axis_name: mapped axis over which batch normalisation is synchronised.
    """

    num_classes: int
    block: str = "basic"
    blocks: Sequence[int] = (2, 2, 2, 2)
    width: int = 64
    stem: str = "cifar"
    activation: str = "relu"
    dropout: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32
    axis_name: Hashable | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits `[N, K]` and features by layer of images `[N, H, W, 3]`, float.

        The features are `stem`, `stage1` to `stage4`, `[N, H', W', C]` after the last activation,
        and `pooled`, `[N, C]`, the spatial mean of stage 4 that the classifier sees.
        """
        shared = {"axis_name": self.axis_name, "dtype": self.dtype}
        kernel, stride = (3, 1) if self.stem == "cifar" else (7, 2)
        x = images.astype(self.dtype)
        with jax.named_scope("stem"):
            # The pool before the activation: the same for ReLU, on a quarter of the values.
            pool = self.stem == "imagenet"
            conv = ConvNorm(self.width, kernel, stride, max_pool=pool, **shared, name="stem")
            x = ACTIVATIONS[self.activation](conv(x, train=train))
        features = {"stem": x}
        block_class: Any = BLOCKS[self.block]
        if self.remat:
            block_class = nn.remat(block_class, static_argnums=(2,))
        for stage, num_blocks in enumerate(self.blocks, start=1):
            with jax.named_scope(f"stage{stage}"):
                for i in range(num_blocks):
                    x = block_class(
                        self.width * 2 ** (stage - 1),
                        stride=2 if i == 0 and stage > 1 else 1,
                        activation=self.activation,
                        **shared,
                        name=f"stage{stage}_block{i + 1}",
                    )(x, train)
            features[f"stage{stage}"] = x
        with jax.named_scope("head"):
            features["pooled"] = x.astype(jnp.float32).mean(axis=(1, 2))
            logits = Classifier(self.num_classes, self.dropout, name="head")(
                features["pooled"], train=train
            )
        return logits, features
