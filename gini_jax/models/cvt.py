"""Convolutional vision transformer (Wu et al., arXiv 2103.15808) with a tap at every stage."""

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gini_jax.models.layers import ACTIVATIONS, BatchNorm, Classifier

_init = nn.initializers.truncated_normal(0.02)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch, an example at a time (arXiv 1603.09382)."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The branch `[N, tokens, C]`, zero with probability `rate` and scaled up otherwise."""
        return nn.Dropout(self.rate, broadcast_dims=(1, 2), deterministic=not train)(x)


class ConvProjection(nn.Module):
    """Depthwise 3x3 convolution, batch norm and a linear map: queries, keys or values.

    The class token, where there is one, skips the convolution.
    """

    channels: int
    stride: int
    axis_name: Hashable | None
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array, cls: jax.Array | None, *, train: bool) -> jax.Array:
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
            name="conv",
        )(tokens)
        x = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name="norm")(x, train=train)
        x = x.reshape((x.shape[0], -1, self.channels))
        if cls is not None:
            x = jnp.concatenate([cls, x], axis=1)
        return nn.Dense(self.channels, kernel_init=_init, dtype=self.dtype, name="dense")(x)


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and around a residual connection.

    The attention's scale is `C ** -0.5` over all heads together, as in the authors' code.
    """

    heads: int
    drop_path: float
    activation: str
    with_cls: bool
    axis_name: Hashable | None
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, height: int, width: int, train: bool) -> jax.Array:
        """`[N, tokens, C]`, the class token first where there is one, to the same shape."""
        channels = x.shape[-1]
        dense = partial(nn.Dense, kernel_init=_init, dtype=self.dtype)
        norm = partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        drop_path = DropPath(self.drop_path)

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
        x = x + drop_path(y, train=train)

        y = dense(4 * channels, name="mlp1")(norm(name="norm2")(x))
        y = dense(channels, name="mlp2")(ACTIVATIONS[self.activation](y))
        return x + drop_path(y, train=train)


class CvT(nn.Module):
    """A convolutional vision transformer of three stages.

    Attributes:
        num_classes: `K`.
        widths: channels of the stages.
        blocks: blocks of the stages.
        heads: attention heads of the stages.
        drop_path: stochastic depth of the last block; it grows linearly from 0 in the last stage.
        activation: `"quick_gelu"`, as in the authors' code, or `"gelu"`, as in Hugging Face's.
        dropout: before the last layer.
        remat: recompute the blocks' activations in the backward pass to save memory.
        dtype: type of the computation; parameters and logits are float32.
        axis_name: mapped axis over which batch normalisation is synchronised.
    """

    num_classes: int
    widths: Sequence[int] = (64, 192, 384)
    blocks: Sequence[int] = (1, 2, 10)
    heads: Sequence[int] = (1, 3, 6)
    drop_path: float = 0.1
    activation: str = "quick_gelu"
    dropout: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32
    axis_name: Hashable | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits `[N, K]` and features by layer of images `[N, H, W, 3]`, float, `H, W >= 32`.

        The features are `stage1` to `stage3`, `[N, tokens, C]` without the class token, and
        `pooled`, `[N, C]`, the normalised class token that the classifier sees.
        """
        x = images.astype(self.dtype)
        features = {}
        block_class: Any = nn.remat(Block, static_argnums=(2, 3, 4)) if self.remat else Block
        for stage, (channels, num_blocks, heads) in enumerate(
            zip(self.widths, self.blocks, self.heads, strict=True), start=1
        ):
            last = stage == len(self.widths)
            with jax.named_scope(f"stage{stage}"):
                kernel, stride, pad = (7, 4, 2) if stage == 1 else (3, 2, 1)
                x = nn.Conv(
                    channels,
                    (kernel, kernel),
                    strides=stride,
                    padding=((pad, pad), (pad, pad)),
                    kernel_init=_init,
                    dtype=self.dtype,
                    name=f"stage{stage}_embed",
                )(x)
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
                    )(x, height, width, train)
                if last:
                    cls, x = x[:, 0], x[:, 1:]
            features[f"stage{stage}"] = x
            x = x.reshape((n, height, width, channels))
        with jax.named_scope("head"):
            features["pooled"] = nn.LayerNorm(epsilon=1e-5, name="norm")(cls.astype(jnp.float32))
            classifier = Classifier(self.num_classes, self.dropout, name="head")
            logits = classifier(features["pooled"], train=train)
        return logits, features
