"""Networks of inverted residuals for small machines: MobileNetV2 and EfficientNet-Lite.

Sandler et al., arXiv 1801.04381, and Tan and Le, arXiv 1905.11946, without squeeze-and-excitation.
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gini_jax.config.registry import Below1, Count, FloatType, Positive
from gini_jax.models.convolution import conv_general_dilated
from gini_jax.models.layers import (
    ACTIVATIONS,
    Activation,
    BatchNorm,
    Classifier,
    Dropout,
    Head,
    NetworkSpec,
    perturbed,
)

_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Stage(NamedTuple):
    """Blocks of the same width.

    Attributes:
        expansion: how many times wider a block is inside.
        channels: output channels of a block.
        blocks: number of blocks.
        stride: stride of the first block.
        kernel: side of the depthwise kernel.
    """

    expansion: int
    channels: int
    blocks: int
    stride: int
    kernel: int = 3


class ConvNorm(nn.Module):
    """A convolution without bias and its batch normalisation.

    Attributes:
        padding: `torch`: the same on both sides; `same`: as TensorFlow pads.
        depthwise: a kernel of its own for each channel.
    """

    channels: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    padding: str = "torch"
    norm: Mapping[str, Any] = nn.FrozenDict()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], *, train: bool) -> Float[Array, "N h w K"]:
        """`[N, H, W, C]` to `[N, H / stride, W / stride, channels]`, rounded up."""
        pad = (self.kernel - 1) // 2
        x = nn.Conv(
            self.channels,
            (self.kernel, self.kernel),
            strides=self.stride,
            padding="SAME" if self.padding == "same" else ((pad, pad), (pad, pad)),
            feature_group_count=self.channels if self.depthwise else 1,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=_kernel_init,
            conv_general_dilated=conv_general_dilated,
            name="conv",
        )(x)
        return BatchNorm(**self.norm, dtype=self.dtype, name="norm")(x, train=train)


class InvertedResidual(nn.Module):
    """1x1 (wider), depthwise and 1x1 (back) convolutions, and a shortcut where the shapes allow."""

    stage: Stage
    stride: int
    drop_path: float
    activation: str
    conv: Any  # ConvNorm with the arguments that all share

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], example_index: Int[Array, " N"] | None, *, train: bool
    ) -> Float[Array, "N h w K"]:
        """`[N, H, W, C]` to `[N, H / stride, W / stride, stage.channels]`, rounded up."""
        act, wide = ACTIVATIONS[self.activation], self.stage.expansion * x.shape[-1]
        y = x
        if self.stage.expansion > 1:
            y = act(self.conv(wide, name="expand")(y, train=train))
        depthwise = self.conv(
            wide, self.stage.kernel, self.stride, depthwise=True, name="depthwise"
        )
        y = act(depthwise(y, train=train))
        y = self.conv(self.stage.channels, name="project")(y, train=train)
        if x.shape != y.shape:
            return y
        return x + Dropout(self.drop_path, broadcast=True)(y, example_index, train=train)


class MobileNet(nn.Module):
    """A network of inverted residuals.

    Attributes:
        num_classes: `K`.
        stages: expansion, channels, blocks, stride and kernel of each stage
        stem: channels of the first convolution
        last: channels of the last convolution
        padding: torch: the same on both sides; same: as TensorFlow
        momentum: share of a running average that is kept
        epsilon: added to variances in normalisation
        drop_path: rate of stochastic depth, multiplied by `i / n` in block `i` of `n`
        activation: activation function
        dropout: dropout before the last layer
        head: last layer: linear; cosine, of normalised features and weights; probe, linear, through
            which cross-entropy does not reach the network; auto: what the terms need, else linear
        scale: what a cosine head multiplies the cosines by
        dtype: type of the computation; parameters and logits are float32
        axis_name: mapped axis over which batch normalisation is synchronised.

    """

    num_classes: int
    stages: Sequence[Sequence[int]] = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 32, 3, 2, 3),
        (6, 64, 4, 2, 3),
        (6, 96, 3, 1, 3),
        (6, 160, 3, 2, 3),
        (6, 320, 1, 1, 3),
    )
    stem: Count = 32
    last: Count = 1280
    padding: Literal["torch", "same"] = "torch"
    momentum: Below1 = 0.9
    epsilon: Positive = 1e-5
    drop_path: Below1 = 0.0
    activation: Activation = "relu6"
    dropout: Below1 = 0.2
    head: Head = "auto"
    scale: Positive = 16.0
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

        The features are `stem`, `stage1` to `stage7`, `last`, `[N, H', W', C]`, and `pooled`,
        `[N, C]`, the spatial mean of `last` that the classifier sees. Stages end without an
        activation; `last` ends in one. `example_index` is as in `ResNet`.
        """
        act = ACTIVATIONS[self.activation]
        norm: Mapping[str, Any] = nn.FrozenDict(
            axis_name=self.axis_name, momentum=self.momentum, epsilon=self.epsilon
        )
        conv = partial(ConvNorm, padding=self.padding, norm=norm, dtype=self.dtype)
        x = images.astype(self.dtype)
        with jax.named_scope("stem"):
            x = act(conv(self.stem, 3, 2, name="stem")(x, train=train))
        x = perturbed(self, "stem", x)
        features = {"stem": x}
        stages = [Stage(*stage) for stage in self.stages]
        total, index = sum(stage.blocks for stage in stages), 0
        for number, stage in enumerate(stages, start=1):
            with jax.named_scope(f"stage{number}"):
                for i in range(stage.blocks):
                    x = InvertedResidual(
                        stage,
                        stride=1 if i else stage.stride,
                        drop_path=self.drop_path * index / total,
                        activation=self.activation,
                        conv=conv,
                        name=f"block{index + 1}",
                    )(x, example_index, train=train)
                    index += 1
            x = perturbed(self, f"stage{number}", x)
            features[f"stage{number}"] = x
        with jax.named_scope("last"):
            x = act(conv(self.last, name="last")(x, train=train))
        features["last"] = x = perturbed(self, "last", x)
        with jax.named_scope("head"):
            pooled = x.astype(jnp.float32).mean(axis=(1, 2))
            features["pooled"] = perturbed(self, "pooled", pooled)
            classifier = Classifier(
                self.num_classes, self.dropout, self.head, self.scale, name="head"
            )
            logits = classifier(features["pooled"], train=train, example_index=example_index)
        return logits, features


# Rules that turn our paths, without their last part, into PyTorch's names; see `resnet` for their
# form. The first block has no expansion.
_ENDS = [
    (r"stem/conv", "features.0.0"),
    (r"stem/norm", "features.0.1"),
    (r"last/conv", "features.18.0"),
    (r"last/norm", "features.18.1"),
    (r"head/dense", "classifier.1"),
]
_TORCHVISION = [
    *_ENDS,
    (r"block1/depthwise/conv", "features.1.conv.0.0"),
    (r"block1/depthwise/norm", "features.1.conv.0.1"),
    (r"block1/project/conv", "features.1.conv.1"),
    (r"block1/project/norm", "features.1.conv.2"),
    (r"block(\d+)/expand/conv", "features.{0}.conv.0.0"),
    (r"block(\d+)/expand/norm", "features.{0}.conv.0.1"),
    (r"block(\d+)/depthwise/conv", "features.{0}.conv.1.0"),
    (r"block(\d+)/depthwise/norm", "features.{0}.conv.1.1"),
    (r"block(\d+)/project/conv", "features.{0}.conv.2"),
    (r"block(\d+)/project/norm", "features.{0}.conv.3"),
]
_FLAT = [
    *_ENDS,
    (r"block1/depthwise/conv", "features.1.conv.0"),
    (r"block1/depthwise/norm", "features.1.conv.1"),
    (r"block1/project/conv", "features.1.conv.3"),
    (r"block1/project/norm", "features.1.conv.4"),
    (r"block(\d+)/expand/conv", "features.{0}.conv.0"),
    (r"block(\d+)/expand/norm", "features.{0}.conv.1"),
    (r"block(\d+)/depthwise/conv", "features.{0}.conv.3"),
    (r"block(\d+)/depthwise/norm", "features.{0}.conv.4"),
    (r"block(\d+)/project/conv", "features.{0}.conv.6"),
    (r"block(\d+)/project/norm", "features.{0}.conv.7"),
]
_EFFICIENTNET = [
    (r"stem/conv", "_conv_stem"),
    (r"stem/norm", "_bn0"),
    (r"block(\d+)/expand/conv", "_blocks.{0-1}._expand_conv"),
    (r"block(\d+)/expand/norm", "_blocks.{0-1}._bn0"),
    (r"block(\d+)/depthwise/conv", "_blocks.{0-1}._depthwise_conv"),
    (r"block(\d+)/depthwise/norm", "_blocks.{0-1}._bn1"),
    (r"block(\d+)/project/conv", "_blocks.{0-1}._project_conv"),
    (r"block(\d+)/project/norm", "_blocks.{0-1}._bn2"),
    (r"last/conv", "_conv_head"),
    (r"last/norm", "_bn1"),
    (r"head/dense", "_fc"),
]


def _infer(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing: the stages are fixed."""
    del weights
    return {}


_LITE0 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_LITE2 = (
    (1, 16, 1, 1, 3),
    (6, 24, 3, 2, 3),
    (6, 48, 3, 2, 5),
    (6, 88, 4, 2, 3),
    (6, 120, 4, 1, 5),
    (6, 208, 5, 2, 5),
    (6, 352, 1, 1, 3),
)


def _efficientnet(stages: Sequence[Sequence[int]]) -> NetworkSpec:
    """An EfficientNet-Lite, as its authors train it."""
    return NetworkSpec(
        MobileNet,
        {
            "stages": stages,
            "padding": "same",
            "momentum": 0.99,
            "epsilon": 1e-3,
            "drop_path": 0.2,
        },
        {"EfficientNet-PyTorch": _EFFICIENTNET},
        _infer,
        "EfficientNet-PyTorch",
        {"activation": "relu6", "padding": "same", "epsilon": 1e-3},
    )


NETWORKS = {
    "mobilenet_v2": NetworkSpec(
        MobileNet,
        {},
        {"torchvision": _TORCHVISION, "flat blocks": _FLAT},
        _infer,
        "torchvision",
        {"activation": "relu6", "padding": "torch", "epsilon": 1e-5},
    ),
    "efficientnet_lite0": _efficientnet(_LITE0),
    "efficientnet_lite2": _efficientnet(_LITE2),
}
