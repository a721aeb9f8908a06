"""A convolution that is also fast on CPUs; for `flax.linen.Conv(conv_general_dilated=)`.

On CPUs, XLA is slow in three cases, which this file computes by products: 1x1 kernels, depthwise
kernels, and the weight gradient of all other kernels. For this gradient, XLA reorders the images.
In doing so it recomputes them, with every operation that was fused into them. So the gradient takes
longer inside a network than in benchmarks/convolutions.py, which measures kernels alone. Programs
for other platforms call XLA's convolution.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gini_jax.platform import traces_for_cpus

# How many numbers the shifted copies may hold at a time, so that they stay in the CPU's caches.
_CHUNK = 1 << 20


class Geometry(NamedTuple):
    """The fixed parameters of a convolution; hashable."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    groups: int
    precision: Any


def conv_general_dilated(
    lhs: Float[Array, "N H W C"],
    rhs: Float[Array, "h w c K"],
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    **others: Any,
) -> Float[Array, "N P Q K"]:
    """`lax.conv_general_dilated`, with a separate method on CPUs where that is faster.

    Reverse-mode derivatives of any order work. On CPUs, forward mode (`jax.jvp`, `jax.hessian`)
    raises the TypeError of `jax.custom_vjp`; elsewhere it works.

    Args:
        lhs: activations, channels last.
        rhs: the kernel.
        window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, batch_group_count, precision: as in `lax.conv_general_dilated`.
        **others: likewise.

    Examples:
        >>> x, w = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
        >>> numbers = lax.conv_dimension_numbers(x.shape, w.shape, ("NHWC", "HWIO", "NHWC"))
        >>> y = conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)
        >>> y[0, 1, 1].tolist()
        [18.0, 18.0, 18.0, 18.0, 18.0]
    """
    channels_last = lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    standard = (
        lhs.ndim == 4
        and dimension_numbers in (channels_last, ("NHWC", "HWIO", "NHWC"))
        and not dilated
        and batch_group_count == 1
        and others.get("preferred_element_type") in (None, lhs.dtype)
        and traces_for_cpus()
    )
    if standard:
        pads = padding
        if isinstance(padding, str):
            pads = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
        (top, bottom), (left, right) = pads
        down, across = window_strides
        pads = ((top, bottom), (left, right))
        geometry = Geometry((down, across), pads, feature_group_count, precision)
        if np.min(pads) >= 0 and _pays(lhs.shape, rhs.shape, geometry):
            return _convolve(geometry, lhs, rhs)
    rest = (dimension_numbers, feature_group_count, batch_group_count, precision)
    return lax.conv_general_dilated(
        lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, *rest, **others
    )


def _pays(lhs: tuple[int, ...], rhs: tuple[int, ...], geometry: Geometry) -> bool:
    """Whether the CPU method is faster, as measured."""
    height, width = rhs[:2]
    (top, bottom), _ = geometry.padding
    if geometry.groups > 1:
        return geometry.groups == lhs[3] == rhs[3]  # depthwise
    if (height, width) == (1, 1):
        return geometry.padding == ((0, 0), (0, 0))
    rows, columns = _output_size(lhs, rhs, geometry)
    large = rows * columns >= 64 or geometry.strides != (1, 1)
    return large and max(top, bottom) < height and (height, width) <= (7, 7)


def _output_size(lhs: Any, rhs: Any, geometry: Geometry) -> tuple[int, int]:
    rows, columns = (
        (size + sum(pads) - kernel) // stride + 1
        for size, kernel, pads, stride in zip(
            lhs[1:3], rhs[:2], geometry.padding, geometry.strides, strict=True
        )
    )
    return rows, columns


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    own = _forward_on_cpus(geometry, w)
    if own is _by_xla:
        return _by_xla(geometry, x, w)
    return lax.platform_dependent(
        x, w, cpu=partial(own, geometry), default=partial(_by_xla, geometry)
    )


def _forward_on_cpus(geometry: Geometry, w: jax.Array) -> Callable[..., jax.Array]:
    if geometry.groups > 1:
        return _depthwise
    return _pointwise if w.shape[:2] == (1, 1) else _by_xla


def _forward(geometry: Geometry, x: jax.Array, w: jax.Array) -> tuple[jax.Array, Any]:
    return _convolve(geometry, x, w), (x, w)


def _backward(geometry: Geometry, saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    forward = _forward_on_cpus(geometry, w)

    def by_xla(x: jax.Array, w: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(partial(_by_xla, geometry), x, w)[1](dy)

    def own(x: jax.Array, w: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        if forward is _pointwise:
            return jax.vjp(partial(forward, geometry), x, w)[1](dy)
        (dx,) = jax.vjp(lambda x: forward(geometry, x, w), x)[1](dy)
        return dx, _weight_gradient(geometry, x, dy, w)

    return lax.platform_dependent(x, w, dy, cpu=own, default=by_xla)


_convolve.defvjp(_forward, _backward)


def _by_xla(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        w,
        geometry.strides,
        geometry.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def _pointwise(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    """A 1x1 convolution as one product of matrices, and so are its gradients."""
    rows, columns = geometry.strides
    x = x[:, ::rows, ::columns]
    product = x.reshape(-1, x.shape[-1]) @ w[0, 0]
    return product.reshape(*x.shape[:3], w.shape[-1])


def _depthwise(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    """A depthwise convolution as a sum of shifted copies, each times its weights."""
    shifts = _shifts(geometry, x, w.shape, _output_size(x.shape, w.shape, geometry))
    taps = w.reshape(-1, w.shape[3])
    return sum(shift * tap for shift, tap in zip(shifts, taps, strict=True))  # type: ignore


def _weight_gradient(geometry: Geometry, x: jax.Array, dy: jax.Array, w: jax.Array) -> jax.Array:
    """Gradient with respect to the weights: products of shifted copies, a few images at a time.

    `dw[i,j,c,k] = sum_n,p,q x[n, p s + i, q s + j, c] dy[n, p, q, k]`, for a padded `x`; of a
    depthwise kernel only `k = c`.
    """
    if geometry.groups > 1:
        way, images = _by_channel, _divisor_below(x.shape[0], max(2, _CHUNK // 8 // x[0].size))
    else:
        way = _both_shifted if geometry.strides == (1, 1) else _input_shifted
        per_image = x[0].size * w.shape[1] + dy[0].size * w.shape[0]
        images = _divisor_below(x.shape[0], _CHUNK // per_image)

    def add(total: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + way(geometry, *chunk, w.shape), None

    chunks = (x.reshape(-1, images, *x.shape[1:]), dy.reshape(-1, images, *dy.shape[1:]))
    total, _ = lax.scan(add, jnp.zeros(w.shape, jnp.float32), chunks)
    return total.astype(w.dtype)


def _both_shifted(
    geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: tuple[int, ...]
) -> jax.Array:
    """For stride 1: one product of `x` shifted along rows and `dy` shifted along columns.

    `[pixels, w C]^T @ [pixels, h K]` copies `w C + h K` numbers per pixel, nine shifts of `x` or
    of `dy` copy `w h C` or `w h K`.
    """
    height, width, channels, features = kernel
    (top, bottom), horizontal = geometry.padding
    rows, columns = x.shape[1], dy.shape[2]
    x = jnp.pad(x, ((0, 0), (0, 0), horizontal, (0, 0)))
    x = jnp.concatenate([x[:, :, j : j + columns] for j in range(width)], axis=-1)
    # Under tap i, row r of x is multiplied with row r - i + top of dy.
    dy = jnp.pad(dy, ((0, 0), (height - 1 - top, height - 1 - bottom), (0, 0), (0, 0)))
    taps = range(height - 1, -1, -1)
    dy = jnp.concatenate([dy[:, i : i + rows] for i in taps], axis=-1)
    product = _product(x.reshape(-1, width * channels), dy.reshape(-1, height * features))
    return product.reshape(width, channels, height, features).transpose(2, 0, 1, 3)


def _input_shifted(
    geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: tuple[int, ...]
) -> jax.Array:
    """For any stride: the parts of `x` that each tap sees, side by side, times `dy`."""
    stacked = jnp.concatenate(_shifts(geometry, x, kernel, dy.shape[1:3]), axis=-1)
    product = _product(stacked.reshape(-1, stacked.shape[-1]), dy.reshape(-1, dy.shape[-1]))
    return product.reshape(kernel)


def _by_channel(
    geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: tuple[int, ...]
) -> jax.Array:
    """For depthwise kernels: what each tap sees, times `dy`, summed over the pixels.

    The sum is a product with ones: XLA's own sum over all axes but the last reads memory in steps
    of a row, and is slower.
    """
    pixels = dy.size // dy.shape[-1]
    ones = jnp.ones((pixels, 1), dy.dtype)
    shifts = _shifts(geometry, x, kernel, dy.shape[1:3])
    return jnp.stack([_product(ones, (s * dy).reshape(pixels, -1)) for s in shifts]).reshape(kernel)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a^T @ b`, accumulated in float32."""
    contract = (((0,), (0,)), ((), ()))
    return lax.dot_general(a, b, contract, preferred_element_type=jnp.float32)


def _shifts(
    geometry: Geometry, x: jax.Array, kernel: tuple[int, ...], size: tuple[int, ...]
) -> list[jax.Array]:
    """The part of a padded input that each tap of the kernel sees, `[N, *size, C]` each."""
    (down, right), (vertical, horizontal) = geometry.strides, geometry.padding
    x = jnp.pad(x, ((0, 0), vertical, horizontal, (0, 0)))
    return [
        x[:, i : i + (size[0] - 1) * down + 1 : down, j : j + (size[1] - 1) * right + 1 : right]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]


def _divisor_below(number: int, limit: int) -> int:
    """The largest divisor of a number that does not exceed a limit; at least 1."""
    return next(d for d in range(max(1, min(number, limit)), 0, -1) if number % d == 0)
