"""The additive sums over a batch, and every term as a function of them."""

import dataclasses
from collections.abc import Hashable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

EPS = 1e-10

AxisName: TypeAlias = Hashable | tuple[Hashable, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassSums:
    """What the terms need of a batch; the sums of two batches add to those of their union.

    Attributes:
        activation: `[C, K]`, `sum_n w[n] z[n,c] Y[n,k]`, with `z` the spatial mean of `|A|`.
        mass: `[K]`, `sum_n w[n] Y[n,k]`.

    Example:
        >>> import jax.numpy as jnp
        >>> half = ClassSums(activation=jnp.array([[2.0, 0.0]]), mass=jnp.array([2.0, 1.0]))
        >>> (half + half).mass.tolist()
        [4.0, 2.0]
        >>> half.profile().tolist()  # the feature fires for the first class alone
        [[1.0, 0.0]]
    """

    activation: jax.Array
    mass: jax.Array

    def __add__(self, other: "ClassSums") -> "ClassSums":
        return ClassSums(self.activation + other.activation, self.mass + other.mass)

    def means(self) -> jax.Array:
        """Class-mean activation of each feature, `S[c,k]`, `[C, K]`."""
        return self._means().T

    def profile(self) -> jax.Array:
        """Class profile of each feature, `p[c,k]`, `[C, K]`; see `class_profile`."""
        scaled, factor = self._scaled()
        return (scaled * factor).T

    def distribution(self) -> jax.Array:
        """Share of each class, `t[k]`, `[K]`; see `class_distribution`."""
        total = self.mass.sum()
        return jnp.where(total > 0, self.mass / jnp.where(total > 0, total, 1.0), 0.0)

    def gini(self) -> jax.Array:
        """Mean Gini impurity of the features, scalar; see `gini_loss`."""
        scaled, factor = self._scaled()
        return (1.0 - jnp.square(scaled).sum(axis=0) * jnp.square(factor)).mean()

    def kl(self, target: jax.Array | None = None) -> jax.Array:
        """Divergence of the features' class distribution from `target`; see `kl_loss`."""
        scaled, factor = self._scaled()
        by_class = jnp.dot(scaled, factor, precision=lax.Precision.HIGHEST)
        num_classes = by_class.shape[0]
        q = (by_class + EPS) / (by_class.sum() + num_classes * EPS)
        t = self.distribution() if target is None else _check_target(target, num_classes)
        log_t = jnp.log(jnp.where(t > 0, t, 1.0))  # 0 log 0 = 0, with a finite gradient
        return jnp.maximum((t * (log_t - jnp.log(q))).sum(), 0.0)

    def entropy(self) -> jax.Array:
        """Mean entropy of the features, scalar, of signed sums; see `entropy_loss`."""
        log_p = jax.nn.log_softmax(self._means(), axis=0)
        return -(jnp.exp(log_p) * log_p).sum(axis=0).mean() / jnp.log(10.0)

    # Inside, classes come first, `[K, C]`, as the segment sum leaves them: two transpositions in a
    # row cost nothing, one costs a CPU as much as all the rest.

    def _means(self) -> jax.Array:
        return self.activation.T * (1.0 / (self.mass + EPS))[:, None]

    def _scaled(self) -> tuple[jax.Array, jax.Array]:
        """Profiles as a product `[K, C] * [C]`, the first factor scaled to sums of 1 beforehand.

        The scale is a constant and the second factor 1, but for its gradient: so no square of a
        sum, 1e60 for activations of 1e30, is ever formed, nor is the profile kept in memory.
        """
        means = self._means()
        scale = lax.stop_gradient(1.0 / (means.sum(axis=0) + EPS))
        scaled = means * scale
        return scaled, 1.0 / (scaled.sum(axis=0) + EPS * scale)


@jax.custom_jvp
def _absolute(x: jax.Array) -> jax.Array:
    return jnp.abs(x)


# |x| with gradient 0 at 0, where that of jnp.abs is 1: a dead feature stays without.
_absolute.defjvps(
    lambda tangent, out, x: jnp.where(x > 0, tangent, jnp.where(x < 0, -tangent, 0.0))
)


def class_sums(
    features: jax.Array,
    labels: jax.Array,
    *,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    signed: bool = False,
) -> ClassSums:
    r"""Sums over the examples of which every term is a function.

    $$z_{nc} = \mathrm{mean}_{space} |A_{n \ldots c}|, \quad
      \mathrm{activation}_{ck} = \sum_n w_n z_{nc} Y_{nk}, \quad
      \mathrm{mass}_k = \sum_n w_n Y_{nk}$$

    Args:
        features: `[N, ..., C]` activations of any float type, any number of spatial or token axes.
        labels: `[N, K]`, one-hot or soft rows; or `[N]` integers together with `num_classes`
            (an integer outside `[0, K)` belongs to no class).
        num_classes: `K`; needed for integer labels only.
        where: `[N]` mask or example weights; 1 by default.
        axis_name: name(s) of mapped axes to sum over.
        signed: take the mean of `A` itself in place of `|A|`, as the entropy variant does.

    Returns:
        `ClassSums` in float32 (float64 for float64 input).

    Raises:
        ValueError: the shapes do not fit, or integer labels come without `num_classes`.
        TypeError: the features are not floating-point.

    References:
        arXiv 2202.07073, section 3: the class-wise average of each feature's activation.

    Example:
        >>> import jax.numpy as jnp
        >>> features = jnp.array([[1.0, -2.0], [3.0, 0.0]])
        >>> sums = class_sums(features, jnp.array([0, 1]), num_classes=2)
        >>> sums.activation.tolist()
        [[1.0, 3.0], [2.0, 0.0]]
        >>> sums.mass.tolist()
        [1.0, 1.0]
    """
    local = local_sums(features, labels, num_classes, where, signed)
    return local if axis_name is None else lax.psum(local, axis_name)


def local_sums(features, labels, num_classes, where, signed) -> ClassSums:
    """`class_sums` of this device's examples alone."""
    features, labels = jnp.asarray(features), jnp.asarray(labels)
    weights = _check_shapes(features, labels, num_classes, where)
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    activation = features.astype(dtype)
    if not signed:
        activation = _absolute(activation)
    z = activation.mean(axis=tuple(range(1, features.ndim - 1)))
    if labels.ndim == 2:
        return _sums_by_product(z, labels.astype(dtype), weights)
    # A segment sum is O(NC + CK) against the one-hot product's O(NCK); a TPU does a product on
    # its matrix unit and a scatter one row at a time. benchmarks/losses.py times both.
    return lax.platform_dependent(
        z,
        labels,
        weights,
        tpu=lambda z, labels, weights: _sums_by_product(
            z, jax.nn.one_hot(labels, num_classes, dtype=z.dtype), weights
        ),
        default=lambda z, labels, weights: _sums_by_segment(z, labels, weights, num_classes),
    )


def _sums_by_product(z, onehot, weights) -> ClassSums:
    weighted = onehot if weights is None else weights[:, None].astype(z.dtype) * onehot
    # Highest precision: the TPU multiplies float32 in bfloat16 passes by default.
    product = jnp.einsum("nc,nk->ck", z, weighted, precision=lax.Precision.HIGHEST)
    return ClassSums(activation=product, mass=weighted.sum(axis=0))


def _sums_by_segment(z, labels, weights, num_classes) -> ClassSums:
    index = jnp.where(labels < 0, num_classes, labels)  # outside [0, K): dropped
    if weights is None:
        weights = jnp.ones(labels.shape, z.dtype)
    else:
        weights = weights.astype(z.dtype)
        z = weights[:, None] * z
    activation = jax.ops.segment_sum(z, index, num_classes)
    return ClassSums(activation.T, mass=jax.ops.segment_sum(weights, index, num_classes))


def _check_shapes(features, labels, num_classes, where) -> jax.Array | None:
    if features.ndim < 2 or not jnp.issubdtype(features.dtype, jnp.floating):
        error = ValueError if features.ndim < 2 else TypeError
        raise error(
            f"features have shape {features.shape} and type {features.dtype}; "
            "they must be floating-point [N, ..., C], channels last"
        )
    if labels.ndim == 1:
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"labels have shape {labels.shape} and type {labels.dtype}; they must be [N, K] "
                "rows, or [N] integers together with num_classes"
            )
        if num_classes is None:
            raise ValueError(f"integer labels of shape {labels.shape} need num_classes=K")
    elif labels.ndim != 2:
        raise ValueError(f"labels have shape {labels.shape}; they must be [N, K], or [N] integers")
    elif num_classes is not None and labels.shape[1] != num_classes:
        raise ValueError(
            f"labels of shape {labels.shape} have {labels.shape[1]} classes, but "
            f"num_classes={num_classes}; leave num_classes out, or let them agree"
        )
    if labels.shape[0] != features.shape[0]:
        raise ValueError(
            f"features of shape {features.shape} hold {features.shape[0]} examples, labels of "
            f"shape {labels.shape} hold {labels.shape[0]}; both must be the same batch"
        )
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.shape != labels.shape[:1]:
        raise ValueError(
            f"where has shape {where.shape}; it must be [N] = {labels.shape[:1]}, a weight each"
        )
    return where


def _check_target(target, num_classes: int) -> jax.Array:
    target = jnp.asarray(target)
    if target.shape != (num_classes,):
        raise ValueError(f"target has shape {target.shape}; it must be [K] = ({num_classes},)")
    if not isinstance(target, jax.core.Tracer):
        total = float(target.sum())
        if not (bool((target >= 0).all()) and abs(total - 1.0) < 1e-3):
            raise ValueError(
                f"target sums to {total:g} with minimum {float(target.min()):g}; it must be a "
                "distribution: not negative, sum 1 (divide it by its sum)"
            )
    return target.astype(jnp.promote_types(target.dtype, jnp.float32))


def gini_impurity(profile: jax.Array) -> jax.Array:
    r"""Gini impurity of class profiles, $1 - \sum_k p_{ck}^2$.

    Args:
        profile: `[..., K]`, rows that sum to 1 (or to 0: impurity 1).

    Returns:
        `[...]` in `[0, 1]`: 0 for a feature that fires for one class alone, `1 - 1/K` for one that
        fires for all alike.

    Example:
        >>> import jax.numpy as jnp
        >>> gini_impurity(jnp.array([[1.0, 0.0], [0.5, 0.5]])).tolist()
        [0.0, 0.5]
    """
    return 1.0 - jnp.square(profile).sum(axis=-1)
