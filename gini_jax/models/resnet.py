"""Residual networks with a tap at every stage (He et al., arXiv 1512.03385)."""

import re
from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gini_jax.config.registry import Below1, Count, Counts, FloatType, Positive
from gini_jax.models.convolution import conv_general_dilated
from gini_jax.models.layers import (
    ACTIVATIONS,
    Activation,
    BatchNorm,
    Classifier,
    Head,
    NetworkSpec,
    perturbed,
)

# PyTorch's default; after one epoch of CIFAR-100 it does better than He initialisation.
_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


_max_pool = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class ConvNorm(nn.Module):
    """A convolution without bias, padded as PyTorch pads it, and its batch normalisation.

    With `max_pool`, a 3x3 max pool with stride 2 follows.
    """

    channels: int
    kernel: int
    stride: int = 1
    max_pool: bool = False
    axis_name: Hashable | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], *, train: bool) -> Float[Array, "N h w K"]:
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
            conv_general_dilated=conv_general_dilated,
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
    def __call__(self, x: Float[Array, "N H W C"], train: bool) -> Float[Array, "N h w K"]:
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
    def __call__(self, x: Float[Array, "N H W C"], train: bool) -> Float[Array, "N h w K"]:
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
    """A residual network.

    Attributes:
        num_classes: `K`.
        block: kind of residual block
        blocks: blocks in each stage
        width: channels of the first stage, before expansion; it doubles at each stage
        stem: cifar: 3x3, stride 1; imagenet: 7x7, stride 2, and a max pool
        activation: activation function
        dropout: dropout before the last layer
        head: last layer: linear; cosine, of normalised features and weights; probe, linear, through
            which cross-entropy does not reach the network; auto: what the terms need, else linear
        scale: what a cosine head multiplies the cosines by
        remat: recompute activations in the backward pass to save memory
        dtype: type of the computation; parameters and logits are float32
        axis_name: mapped axis over which batch normalisation is synchronised.

    With a smooth activation such as `"silu"`, rounding flips no gradient, so a run ends nearly the
    same on any number of devices.
    """

    num_classes: int
    block: Literal["basic", "bottleneck"] = "basic"
    blocks: Counts = (2, 2, 2, 2)
    width: Count = 64
    stem: Literal["cifar", "imagenet"] = "cifar"
    activation: Activation = "relu"
    dropout: Below1 = 0.0
    head: Head = "auto"
    scale: Positive = 16.0
    remat: bool = False
    dtype: FloatType = "float32"
    axis_name: Hashable | None = None

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "N H W 3"],
        train: bool = False,
        example_index: Int[Array, " N"] | None = None,
    ) -> tuple[Float[Array, "N K"], dict[str, Float[Array, "N ..."]]]:
        """Logits `[N, K]` and features by layer of images `[N, H, W, 3]`, float.

        The features are `stem`, `stage1` to `stage4`, `[N, H', W', C]` after the last activation,
        and `pooled`, `[N, C]`, the spatial mean of stage 4 that the classifier sees.
        `example_index` holds the images' places in the global batch, which determine the dropout
        masks.
        """
        shared: dict[str, Any] = {"axis_name": self.axis_name, "dtype": self.dtype}
        kernel, stride = (3, 1) if self.stem == "cifar" else (7, 2)
        x = images.astype(self.dtype)
        with jax.named_scope("stem"):
            # The pool runs before the activation: same result for ReLU, on a quarter of the values.
            pool = self.stem == "imagenet"
            conv = ConvNorm(self.width, kernel, stride, max_pool=pool, **shared, name="stem")
            x = ACTIVATIONS[self.activation](conv(x, train=train))
        x = perturbed(self, "stem", x)
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
            x = perturbed(self, f"stage{stage}", x)
            features[f"stage{stage}"] = x
        with jax.named_scope("head"):
            pooled = x.astype(jnp.float32).mean(axis=(1, 2))
            features["pooled"] = perturbed(self, "pooled", pooled)
            classifier = Classifier(
                self.num_classes, self.dropout, self.head, self.scale, name="head"
            )
            logits = classifier(features["pooled"], train=train, example_index=example_index)
        return logits, features


# Rules that turn our paths, without their last part, into torchvision's and timm's names. `{n}` is
# the n-th group of the pattern, and `{n-1}` is that number minus 1: PyTorch counts from 0.
_TORCHVISION = [
    (r"stem/conv", "conv1"),
    (r"stem/norm", "bn1"),
    (r"stage(\d+)_block(\d+)/shortcut/conv", "layer{0}.{1-1}.downsample.0"),
    (r"stage(\d+)_block(\d+)/shortcut/norm", "layer{0}.{1-1}.downsample.1"),
    (r"stage(\d+)_block(\d+)/conv(\d+)/conv", "layer{0}.{1-1}.conv{2}"),
    (r"stage(\d+)_block(\d+)/conv(\d+)/norm", "layer{0}.{1-1}.bn{2}"),
    (r"head/dense", "fc"),
]


def _infer(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Block, blocks, width and stem, from the names and shapes of PyTorch weights."""
    places = {(int(m[1]), int(m[2])) for k in weights if (m := re.match(r"layer(\d+)\.(\d+)\.", k))}
    if "conv1.weight" not in weights or not places:
        return {}
    stages = range(1, 1 + max(stage for stage, _ in places))
    width, _, kernel, _ = weights["conv1.weight"].shape
    return {
        "block": "bottleneck" if "layer1.0.conv3.weight" in weights else "basic",
        "blocks": tuple(sum(place[0] == stage for place in places) for stage in stages),
        "width": width,
        "stem": "imagenet" if kernel == 7 else "cifar",
    }


def _network(**settings: Any) -> NetworkSpec:
    original = {"activation": "relu", "stem": "imagenet"}
    dialects = {"torchvision or timm": _TORCHVISION}
    return NetworkSpec(ResNet, settings, dialects, _infer, "torchvision", original)


# No public text defines ResNet-17. This is our interpretation, 17 layers:
# 1 + (1 + 1 + 1 + 2) * 3 + 1.
NETWORKS = {
    "resnet17": _network(block="bottleneck", blocks=(1, 1, 1, 2)),
    "resnet18": _network(),
    "resnet50": _network(block="bottleneck", blocks=(3, 4, 6, 3)),
    "resnet_digits": _network(blocks=(1, 1, 1, 1), width=16, activation="silu"),
}
