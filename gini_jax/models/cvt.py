"""Convolutional vision transformer (Wu et al., arXiv 2103.15808) with a tap at every stage."""

import re
from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gini_jax.config.registry import Below1, Counts, FloatType, Positive
from gini_jax.errors import InputError
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

_init = nn.initializers.truncated_normal(0.02)


class ConvProjection(nn.Module):
    """Depthwise 3x3 convolution, batch norm and a linear map: queries, keys or values.

    The class token, if there is one, skips the convolution.
    """

    channels: int
    stride: int
    axis_name: Hashable | None
    dtype: Any

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "N H W C"], cls: Float[Array, "N 1 C"] | None, *, train: bool
    ) -> Float[Array, "N T C"]:
        """`[N, H, W, C]` and `[N, 1, C]` to `[N, tokens, C]`."""
        x = nn.Conv(
            self.channels,
            (3, 3),
            strides=self.stride,
            padding=((1, 1), (1, 1)),
            feature_group_count=self.channels,
            use_bias=False,
            kernel_init=_init,
            dtype=self.dtype,
            conv_general_dilated=conv_general_dilated,
            name="conv",
        )(tokens)
        x = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name="norm")(x, train=train)
        x = x.reshape((x.shape[0], -1, self.channels))
        if cls is not None:
            x = jnp.concatenate([cls, x], axis=1)
        return nn.Dense(self.channels, kernel_init=_init, dtype=self.dtype, name="dense")(x)


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and with a residual connection.

    The attention's scale is `C ** -0.5` over all heads together, as in the authors' code.
    """

    heads: int
    drop_path: float
    activation: str
    with_cls: bool
    axis_name: Hashable | None
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N T C"],
        example_index: Int[Array, " N"] | None,
        height: int,
        width: int,
        train: bool,
    ) -> Float[Array, "N T C"]:
        """`[N, tokens, C]`, the class token first if there is one, to the same shape."""
        channels = x.shape[-1]
        dense = partial(nn.Dense, kernel_init=_init, dtype=self.dtype)
        norm = partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        drop_path = partial(
            Dropout(self.drop_path, broadcast=True), example_index=example_index, train=train
        )

        y = norm(name="norm1")(x)
        cls, y = (y[:, :1], y[:, 1:]) if self.with_cls else (None, y)
        y = y.reshape((-1, height, width, channels))
        heads = []
        for name, stride in (("query", 1), ("key", 2), ("value", 2)):
            project = ConvProjection(channels, stride, self.axis_name, self.dtype, name=name)
            part = project(y, cls, train=train)
            heads.append(part.reshape((*part.shape[:2], self.heads, -1)))
        y = jax.nn.dot_product_attention(*heads, scale=channels**-0.5)
        y = dense(channels, name="out")(y.reshape(x.shape))
        x = x + drop_path(y)

        y = dense(4 * channels, name="mlp1")(norm(name="norm2")(x))
        y = dense(channels, name="mlp2")(ACTIVATIONS[self.activation](y))
        return x + drop_path(y)


class CvT(nn.Module):
    """A convolutional vision transformer of three stages.

    Attributes:
        num_classes: `K`.
        widths: channels in each stage
        blocks: blocks in each stage
        heads: attention heads in each stage
        drop_path: rate of stochastic depth in the last block; it grows linearly from 0
        activation: quick_gelu as in the authors' code; gelu for Hugging Face's weights
        dropout: dropout before the last layer
        head: last layer: linear; cosine, of normalised features and weights; probe, linear, through
            which cross-entropy does not reach the network; auto: what the terms need, else linear
        scale: what a cosine head multiplies the cosines by
        remat: recompute activations in the backward pass to save memory
        dtype: type of the computation; parameters and logits are float32
        axis_name: mapped axis over which batch normalisation is synchronised.

    """

    num_classes: int
    widths: Counts = (64, 192, 384)
    blocks: Counts = (1, 2, 10)
    heads: Counts = (1, 3, 6)
    drop_path: Below1 = 0.1
    activation: Activation = "quick_gelu"
    dropout: Below1 = 0.0
    head: Head = "auto"
    scale: Positive = 16.0
    remat: bool = False
    dtype: FloatType = "float32"
    axis_name: Hashable | None = None

    def __post_init__(self) -> None:
        given = f"model.widths={self.widths}, blocks={self.blocks}, heads={self.heads}"
        if not len(self.widths) == len(self.blocks) == len(self.heads):
            raise InputError(f"{given}: give one number per stage in each of the three")
        if any(width % heads for width, heads in zip(self.widths, self.heads, strict=True)):
            raise InputError(f"{given}: each width must be a multiple of the heads of its stage")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "N H W 3"],
        train: bool = False,
        example_index: Int[Array, " N"] | None = None,
    ) -> tuple[Float[Array, "N K"], dict[str, Float[Array, "N ..."]]]:
        """Logits `[N, K]` and features by layer of images `[N, H, W, 3]`, float, `H, W >= 32`.

        The features are `stage1` to `stage3`, `[N, tokens, C]` without the class token, and
        `pooled`, `[N, C]`, the normalised class token that the classifier sees. `example_index`
        holds the images' places in the global batch, which determine the masks of stochastic depth
        and dropout.
        """
        x = images.astype(self.dtype)
        features = {}
        block_class: Any = nn.remat(Block, static_argnums=(3, 4, 5)) if self.remat else Block
        for stage, (channels, num_blocks, heads) in enumerate(
            zip(self.widths, self.blocks, self.heads, strict=True), start=1
        ):
            last = stage == len(self.widths)
            with jax.named_scope(f"stage{stage}"):
                x = _patch_embedding(stage, channels, self.dtype)(x)
                n, height, width, _ = x.shape
                x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=f"stage{stage}_norm")(x)
                x = x.reshape((n, height * width, channels))
                if last:
                    token = self.param("cls_token", _init, (1, 1, channels), jnp.float32)
                    token = jnp.broadcast_to(token.astype(self.dtype), (n, 1, channels))
                    x = jnp.concatenate([token, x], axis=1)
                for i in range(num_blocks):
                    rate = self.drop_path * i / max(num_blocks - 1, 1) if last else 0.0
                    x = block_class(
                        heads=heads,
                        drop_path=rate,
                        activation=self.activation,
                        with_cls=last,
                        axis_name=self.axis_name,
                        dtype=self.dtype,
                        name=f"stage{stage}_block{i + 1}",
                    )(x, example_index, height, width, train)
                if last:
                    cls, x = x[:, 0], x[:, 1:]
            x = perturbed(self, f"stage{stage}", x)
            features[f"stage{stage}"] = x
            x = x.reshape((n, height, width, channels))
        with jax.named_scope("head"):
            pooled = nn.LayerNorm(epsilon=1e-5, name="norm")(cls.astype(jnp.float32))
            features["pooled"] = perturbed(self, "pooled", pooled)
            classifier = Classifier(
                self.num_classes, self.dropout, self.head, self.scale, name="head"
            )
            logits = classifier(features["pooled"], train=train, example_index=example_index)
        return logits, features


def _patch_embedding(stage: int, channels: int, dtype: Any) -> nn.Conv:
    kernel, stride, pad = (7, 4, 2) if stage == 1 else (3, 2, 1)
    return nn.Conv(
        channels,
        (kernel, kernel),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        kernel_init=_init,
        dtype=dtype,
        conv_general_dilated=conv_general_dilated,
        name=f"stage{stage}_embed",
    )


# Rules that turn our paths, without their last part, into the names of two PyTorch implementations;
# see `resnet` for their form.
_HF_LAYER = "cvt.encoder.stages.{0-1}.layers.{1-1}."
_CVT_HUGGING_FACE = [
    (r"stage(\d+)_embed", "cvt.encoder.stages.{0-1}.embedding.convolution_embeddings.projection"),
    (r"stage(\d+)_norm", "cvt.encoder.stages.{0-1}.embedding.convolution_embeddings.normalization"),
    (r"stage(\d+)_block(\d+)/norm1", _HF_LAYER + "layernorm_before"),
    (r"stage(\d+)_block(\d+)/norm2", _HF_LAYER + "layernorm_after"),
    (r"stage(\d+)_block(\d+)/mlp1", _HF_LAYER + "intermediate.dense"),
    (r"stage(\d+)_block(\d+)/mlp2", _HF_LAYER + "output.dense"),
    (r"stage(\d+)_block(\d+)/out", _HF_LAYER + "attention.output.dense"),
    (
        r"stage(\d+)_block(\d+)/(query|key|value)/conv",
        _HF_LAYER
        + "attention.attention.convolution_projection_{2}.convolution_projection.convolution",
    ),
    (
        r"stage(\d+)_block(\d+)/(query|key|value)/norm",
        _HF_LAYER
        + "attention.attention.convolution_projection_{2}.convolution_projection.normalization",
    ),
    (
        r"stage(\d+)_block(\d+)/(query|key|value)/dense",
        _HF_LAYER + "attention.attention.projection_{2}",
    ),
    (r"norm", "layernorm"),
    (r"head/dense", "classifier"),
    (r"cls_token", "cvt.encoder.stages.2.cls_token"),
]
_MS_BLOCK = "stage{0-1}.blocks.{1-1}."
_CVT_MICROSOFT = [
    (r"stage(\d+)_embed", "stage{0-1}.patch_embed.proj"),
    (r"stage(\d+)_norm", "stage{0-1}.patch_embed.norm"),
    (r"stage(\d+)_block(\d+)/norm(\d)", _MS_BLOCK + "norm{2}"),
    (r"stage(\d+)_block(\d+)/mlp(\d)", _MS_BLOCK + "mlp.fc{2}"),
    (r"stage(\d+)_block(\d+)/out", _MS_BLOCK + "attn.proj"),
    (r"stage(\d+)_block(\d+)/(q|k|v)\w+/conv", _MS_BLOCK + "attn.conv_proj_{2}.conv"),
    (r"stage(\d+)_block(\d+)/(q|k|v)\w+/norm", _MS_BLOCK + "attn.conv_proj_{2}.bn"),
    (r"stage(\d+)_block(\d+)/(q|k|v)\w+/dense", _MS_BLOCK + "attn.proj_{2}"),
    (r"norm", "norm"),
    (r"head/dense", "head"),
    (r"cls_token", "stage2.cls_token"),
]
_DIALECTS = {"Hugging Face": _CVT_HUGGING_FACE, "microsoft/CvT": _CVT_MICROSOFT}


def _infer(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Widths, blocks and heads (64 channels each), from the names and shapes of the weights."""
    embed = r"(?:cvt\.encoder\.stages\.|stage)(\d)\..*(?:projection|patch_embed\.proj)\.weight"
    block = r"(?:cvt\.encoder\.stages\.|stage)(\d)\.(?:layers|blocks)\.(\d+)\."
    widths = {
        int(m[1]): weights[name].shape[0]
        for name in weights
        if (m := re.fullmatch(embed, name))
        and weights[name].ndim == 4
        and "conv_proj" not in name
        and ".layers." not in name
    }
    places = {(int(m[1]), int(m[2])) for name in weights if (m := re.match(block, name))}
    if not widths or not places:
        return {}
    found = {
        "widths": tuple(widths[stage] for stage in sorted(widths)),
        "blocks": tuple(sum(place[0] == stage for place in places) for stage in sorted(widths)),
    }
    if all(width % 64 == 0 for width in widths.values()):
        found["heads"] = tuple(width // 64 for width in found["widths"])
    return found


def _network(**settings: Any) -> NetworkSpec:
    return NetworkSpec(CvT, settings, _DIALECTS, _infer, "Hugging Face", {"activation": "gelu"})


NETWORKS = {
    "cvt13": _network(),
    "cvt21": _network(blocks=(1, 4, 16)),
    "cvt_w24": _network(
        widths=(192, 768, 1024), blocks=(2, 2, 20), heads=(3, 12, 16), drop_path=0.3
    ),
}
