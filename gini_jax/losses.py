"""The discriminability-enforcing loss: pure functions on activations and labels.

Croitoru, Grigore, Ionescu, "Discriminability-enforcing loss to improve representation learning"
(arXiv 2202.07073). Everything here is a function of two sums over the examples of a batch, the
`ClassSums`; they add over examples, micro-batches and devices, and so every value is that of the
global batch. This module imports jax only and nothing of gini_jax.

Notation: `N` examples, `K` classes, `C` features (channels), activations `[N, ..., C]`.
All functions work under jit, vmap, grad, pmap and shard_map, accumulate in float32 (float64 for
float64 input) and return that type.

Gradients under `axis_name`. The value is the same on every device. As for any loss with a psum
inside, differentiating it inside `pmap` or `vmap(axis_name=...)` sums the cotangents of all
devices: `lax.pmean` of the parameters' gradients, the usual data-parallel step, is then exactly
the global batch's gradient. Under `shard_map` (with its default `check_vma=True`) the gradient of
a replicated parameter is already the global one, and a `pmean` changes nothing.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

EPS = 1e-10

AxisName: TypeAlias = Hashable | tuple[Hashable, ...]
Layers: TypeAlias = "jax.Array | Mapping[str, Any] | Sequence[Any]"
Weights: TypeAlias = "float | jax.Array | Mapping[str, Any] | Sequence[Any]"


# ---------------------------------------------------------------------------- the class sums


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
        return self.activation / (self.mass + EPS)

    def profile(self) -> jax.Array:
        """Class profile of each feature, `p[c,k]`, `[C, K]`; see `class_profile`."""
        return _normalise_rows(self.means())

    def distribution(self) -> jax.Array:
        """Share of each class, `t[k]`, `[K]`; see `class_distribution`."""
        total = self.mass.sum()
        return jnp.where(total > 0, self.mass / jnp.where(total > 0, total, 1.0), 0.0)

    def gini(self) -> jax.Array:
        """Mean Gini impurity of the features, scalar; see `gini_loss`."""
        return gini_impurity(self.profile()).mean()

    def kl(self, target: jax.Array | None = None) -> jax.Array:
        """Divergence of the features' class distribution from `target`; see `kl_loss`."""
        profile = self.profile()
        num_classes = profile.shape[-1]
        q = (profile.sum(axis=0) + EPS) / (profile.sum() + num_classes * EPS)
        t = self.distribution() if target is None else _check_target(target, num_classes)
        log_t = jnp.log(jnp.where(t > 0, t, 1.0))  # 0 log 0 = 0, with a finite gradient
        return jnp.maximum((t * (log_t - jnp.log(q))).sum(), 0.0)

    def entropy(self) -> jax.Array:
        """Mean entropy of the features, scalar, of signed sums; see `entropy_loss`."""
        log_p = jax.nn.log_softmax(self.means(), axis=-1)
        return -(jnp.exp(log_p) * log_p).sum(axis=-1).mean() / jnp.log(10.0)


@jax.custom_jvp
def _normalise_rows(means: jax.Array) -> jax.Array:
    return means / (means.sum(axis=-1, keepdims=True) + EPS)


@_normalise_rows.defjvp
def _normalise_rows_jvp(primals, tangents):
    # The quotient rule with the profile put in, so that no square of the row sum (1e60 for
    # activations of 1e30) is ever formed.
    (means,), (tangent,) = primals, tangents
    profile = _normalise_rows(means)
    total = means.sum(axis=-1, keepdims=True) + EPS
    return profile, (tangent - profile * tangent.sum(axis=-1, keepdims=True)) / total


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
    local = _local_sums(features, labels, num_classes, where, signed)
    return local if axis_name is None else lax.psum(local, axis_name)


def _local_sums(features, labels, num_classes, where, signed) -> ClassSums:
    features, labels = jnp.asarray(features), jnp.asarray(labels)
    weights = _check_shapes(features, labels, num_classes, where)
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    activation = features.astype(dtype)
    activation = activation if signed else jnp.abs(activation)
    z = activation.mean(axis=tuple(range(1, features.ndim - 1)))
    if labels.ndim == 2:
        return _sums_by_product(z, labels.astype(dtype), weights)
    # A segment sum is O(NC + CK) against the one-hot product's O(NCK), and the faster one on CPU
    # and GPU (benchmarks/losses.py); the TPU's matrix unit prefers the product to a scatter.
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
    weighted = weights[:, None].astype(z.dtype) * onehot
    # Highest precision: the TPU multiplies float32 in bfloat16 passes by default.
    product = jnp.einsum("nc,nk->ck", z, weighted, precision=lax.Precision.HIGHEST)
    return ClassSums(activation=product, mass=weighted.sum(axis=0))


def _sums_by_segment(z, labels, weights, num_classes) -> ClassSums:
    weights = weights.astype(z.dtype)
    index = jnp.where(labels < 0, num_classes, labels)  # outside [0, K): dropped
    activation = jax.ops.segment_sum(weights[:, None] * z, index, num_classes)
    return ClassSums(activation.T, mass=jax.ops.segment_sum(weights, index, num_classes))


def _check_shapes(features, labels, num_classes, where) -> jax.Array:
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
        return jnp.ones(labels.shape[:1], jnp.float32)
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


# ---------------------------------------------------------------------------- the paper's terms


def class_profile(
    features: jax.Array,
    labels: jax.Array,
    *,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
) -> jax.Array:
    r"""How each feature's activation is spread over the classes.

    $$S_{ck} = \mathrm{activation}_{ck} / (m_k + \epsilon), \quad
      p_{ck} = S_{ck} / (\sum_k S_{ck} + \epsilon)$$

    The division by the class's mass makes the profile independent of how many examples a class
    has. A class absent from the batch has profile 0; a dead feature's row is all 0.

    Args:
        features: `[N, ..., C]` activations.
        labels, num_classes, where, axis_name: as in `class_sums`.

    Returns:
        `[C, K]`; rows sum to 1, or to 0 for dead features.

    Raises:
        ValueError: as in `class_sums`.

    References:
        arXiv 2202.07073, section 3: the class distribution of a feature.

    Example:
        >>> import jax.numpy as jnp
        >>> class_profile(jnp.array([[1.0], [3.0]]), jnp.eye(2)).tolist()
        [[0.25, 0.75]]
    """
    return class_sums(
        features, labels, num_classes=num_classes, where=where, axis_name=axis_name
    ).profile()


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


def gini_loss(
    features: jax.Array,
    labels: jax.Array,
    *,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Gini impurity of the features' class profiles, averaged over the features.

    $$\mathrm{gini} = \frac{1}{C} \sum_c \left(1 - \sum_k p_{ck}^2\right)$$

    Args:
        features: `[N, ..., C]` activations.
        labels, num_classes, where, axis_name: as in `class_sums`.

    Returns:
        Scalar in `[0, 1]`; a dead feature counts as 1, with zero gradient.

    Raises:
        ValueError: as in `class_sums`.

    References:
        arXiv 2202.07073, section 3: the Gini impurity loss.

    Example:
        >>> import jax.numpy as jnp
        >>> float(gini_loss(jnp.array([[1.0, 1.0], [0.0, 1.0]]), jnp.eye(2)))
        0.25
    """
    return class_sums(
        features, labels, num_classes=num_classes, where=where, axis_name=axis_name
    ).gini()


def class_distribution(
    labels: jax.Array,
    *,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Share of each class in the batch, $t_k = m_k / \sum_k m_k$.

    Args:
        labels, num_classes, where, axis_name: as in `class_sums`.

    Returns:
        `[K]`, sum 1; all 0 if everything is masked out.

    Raises:
        ValueError: as in `class_sums`.

    Example:
        >>> import jax.numpy as jnp
        >>> class_distribution(jnp.array([0, 0, 0, 1]), num_classes=2).tolist()
        [0.75, 0.25]
    """
    no_features = jnp.zeros((jnp.shape(labels)[:1] or (0,)) + (1,))
    return class_sums(
        no_features, labels, num_classes=num_classes, where=where, axis_name=axis_name
    ).distribution()


def kl_loss(
    features: jax.Array,
    labels: jax.Array,
    *,
    target: jax.Array | None = None,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Kullback-Leibler divergence of the features' class distribution from the classes' own.

    $$q_k = \frac{\sum_c p_{ck} + \epsilon}{\sum_{ck} p_{ck} + K \epsilon}, \quad
      \mathrm{kl} = \sum_k t_k (\log t_k - \log q_k)$$

    It keeps the Gini term from spending all features on few classes. Its gradient grows without
    bound as the features of a class that is present all die.

    Args:
        features: `[N, ..., C]` activations.
        labels, num_classes, where, axis_name: as in `class_sums`.
        target: `[K]` distribution `t`; the batch's own class distribution by default.

    Returns:
        Scalar, not negative, in nats.

    Raises:
        ValueError: as in `class_sums`; or `target` has another shape or, where its values are
            known while tracing, is no distribution.

    References:
        arXiv 2202.07073, section 3: the KL divergence loss.

    Example:
        >>> import jax.numpy as jnp
        >>> float(kl_loss(jnp.eye(2), jnp.eye(2)))  # a feature for each class
        0.0
    """
    return class_sums(
        features, labels, num_classes=num_classes, where=where, axis_name=axis_name
    ).kl(target)


def entropy_loss(
    features: jax.Array,
    labels: jax.Array,
    *,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Entropy alternative to the Gini term, kept for ablation.

    $$p_{ck} = \mathrm{softmax}_k(S_{ck}), \quad
      \mathrm{entropy} = -\frac{1}{C} \sum_{ck} p_{ck} \log_{10} p_{ck}$$

    with `S` from the plain, not the absolute, activations.

    Args:
        features: `[N, ..., C]` activations.
        labels, num_classes, where, axis_name: as in `class_sums`.

    Returns:
        Scalar in `[0, log10 K]`.

    Raises:
        ValueError: as in `class_sums`.

    References:
        arXiv 2202.07073, the entropy-based alternative of the ablation study.

    Example:
        >>> import jax.numpy as jnp
        >>> print(f"{entropy_loss(jnp.ones((2, 3)), jnp.eye(2)):.4f}")  # log10 of 2
        0.3010
    """
    return class_sums(
        features, labels, num_classes=num_classes, where=where, axis_name=axis_name, signed=True
    ).entropy()


def discriminability_loss(
    features: Layers,
    labels: jax.Array,
    *,
    gini_weight: Weights = 0.5,
    kl_weight: Weights = 0.5,
    impurity: str = "gini",
    target: jax.Array | None = None,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    r"""The terms to add to cross-entropy, over one layer or several.

    $$\frac{1}{L} \sum_l \alpha_l\, \mathrm{gini}_l + \frac{1}{L} \sum_l \beta_l\, \mathrm{kl}_l$$

    Args:
        features: `[N, ..., C]` of one layer, or a mapping or sequence of such arrays, one a layer.
        labels, num_classes, where, axis_name: as in `class_sums`.
        gini_weight: `alpha`, one number, or one a layer (a sequence in the order of `features`, or
            a mapping with its keys).
        kl_weight: `beta`, likewise.
        impurity: `"gini"`, or `"entropy"` to put `entropy_loss` in the place of `gini_loss`.
        target: as in `kl_loss`.

    Returns:
        The weighted sum, scalar; and `{"gini": scalar, "kl": scalar}`, the unweighted means over
        the layers (with `impurity="entropy"`, `"gini"` holds the entropy).

    Raises:
        ValueError: as in `kl_loss`; or there is no layer, the weights do not match the layers, or
            the impurity is unknown.

    References:
        arXiv 2202.07073, section 3: the joint objective.

    Example:
        >>> import jax.numpy as jnp
        >>> features = {"stage4": jnp.ones((2, 4, 4, 8)), "pooled": jnp.ones((2, 8))}
        >>> loss, terms = discriminability_loss(features, jnp.eye(2), gini_weight=0.5)
        >>> float(loss), float(terms["gini"]), float(terms["kl"])
        (0.25, 0.5, 0.0)
    """
    sums, signed_sums = layer_sums(
        features,
        labels,
        impurity=impurity,
        num_classes=num_classes,
        where=where,
        axis_name=axis_name,
    )
    return discriminability_from_sums(
        sums,
        signed_sums=signed_sums,
        gini_weight=gini_weight,
        kl_weight=kl_weight,
        impurity=impurity,
        target=target,
    )


def layer_sums(
    features: Layers,
    labels: jax.Array,
    *,
    impurity: str = "gini",
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
) -> tuple[dict[str, ClassSums], dict[str, ClassSums] | None]:
    """Class sums of every layer, summed over the mapped axes in one collective.

    Args:
        features, labels, impurity, num_classes, where, axis_name: as in `discriminability_loss`.

    Returns:
        `ClassSums` by layer, and the signed ones if `impurity="entropy"`, else None. The layers of
        a sequence are named `"0"`, `"1"` and so on.

    Raises:
        ValueError: as in `discriminability_loss`.

    Example:
        >>> import jax.numpy as jnp
        >>> sums, _ = layer_sums([jnp.ones((2, 3))], jnp.eye(2))
        >>> sums["0"].activation.shape
        (3, 2)
    """
    if impurity not in ("gini", "entropy"):
        raise ValueError(f"unknown impurity {impurity!r}; known: 'gini', 'entropy'")
    layers = _by_layer(features)
    if not layers:
        raise ValueError("features hold no layer; give at least one [N, ..., C] array")

    def sums(signed: bool) -> dict[str, ClassSums]:
        return {
            name: _local_sums(layer, labels, num_classes, where, signed)
            for name, layer in layers.items()
        }

    both = (sums(signed=False), sums(signed=True) if impurity == "entropy" else None)
    return both if axis_name is None else lax.psum(both, axis_name)


def discriminability_from_sums(
    sums: Mapping[str, ClassSums],
    *,
    signed_sums: Mapping[str, ClassSums] | None = None,
    gini_weight: Weights = 0.5,
    kl_weight: Weights = 0.5,
    impurity: str = "gini",
    target: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`discriminability_loss` as a function of the class sums of each layer.

    For sums that do not come from one batch: accumulated over micro-batches (`linearize_at`),
    blended with their history (`RunningSums`), or gathered over a whole data set.

    Args:
        sums: `ClassSums` by layer.
        signed_sums: the signed sums by layer; needed for `impurity="entropy"`.
        gini_weight, kl_weight, impurity, target: as in `discriminability_loss`.

    Returns:
        As `discriminability_loss`.

    Raises:
        ValueError: as in `discriminability_loss`; or the entropy comes without signed sums.

    Example:
        >>> import jax.numpy as jnp
        >>> sums, _ = layer_sums([jnp.ones((2, 3))], jnp.eye(2))
        >>> float(discriminability_from_sums(sums)[0])
        0.25
    """
    if impurity == "entropy":
        if signed_sums is None:
            raise ValueError("impurity='entropy' needs signed_sums (class_sums(signed=True))")
        impurities = [layer.entropy() for layer in signed_sums.values()]
    else:
        impurities = [layer.gini() for layer in sums.values()]
    impurity_by_layer = jnp.stack(impurities)
    kl_by_layer = jnp.stack([layer.kl(target) for layer in sums.values()])
    alpha = _weights_by_layer("gini_weight", gini_weight, list(sums))
    beta = _weights_by_layer("kl_weight", kl_weight, list(sums))
    loss = (alpha * impurity_by_layer).mean() + (beta * kl_by_layer).mean()
    return loss, {"gini": impurity_by_layer.mean(), "kl": kl_by_layer.mean()}


def _by_layer(features: Layers) -> dict[str, Any]:
    if isinstance(features, Mapping):
        return dict(features)
    if isinstance(features, Sequence):
        return {str(i): layer for i, layer in enumerate(features)}
    return {"0": features}


def _weights_by_layer(name: str, weights: Weights, layers: list[str]) -> jax.Array:
    if isinstance(weights, Mapping):
        if set(weights) != set(layers):
            raise ValueError(f"{name} has keys {sorted(weights)}; the layers are {sorted(layers)}")
        weights = [weights[layer] for layer in layers]
    weights = jnp.asarray(weights)
    if weights.ndim > 1 or weights.size not in (1, len(layers)):
        raise ValueError(
            f"{name} has shape {weights.shape}; it must be one number, or one for each of the "
            f"{len(layers)} layers {layers}"
        )
    return weights


# ---------------------------------------------------------------------------- micro-batches, history


def linearize_at(
    loss_of_sums: Callable[[Any], jax.Array], total: Any
) -> tuple[jax.Array, Callable[[Any], jax.Array]]:
    r"""Exact gradient accumulation of a loss that is no sum over examples.

    Let the class sums of a batch be $s(\theta) = \sum_b s_b(\theta)$ over micro-batches `b` and
    the loss $f(s)$. The chain rule gives $\nabla_\theta f = \sum_b \langle f'(s), \partial_\theta
    s_b \rangle$, where $f'(s)$ is one small array that no longer depends on `b`. So a first pass
    over the micro-batches gathers `total` without gradients; this function takes $f'(s)$ there;
    and a second pass differentiates the inner product $\langle f'(s), s_b(\theta) \rangle$ of each
    micro-batch. Memory is that of one micro-batch, the price a second forward pass. Batch
    normalisation, where there is any, sees micro-batches in both passes.

    Args:
        loss_of_sums: from a pytree of `ClassSums` to a scalar.
        total: the sums of the whole batch, such a pytree.

    Returns:
        The loss of the whole batch, and a function from the pytree of one micro-batch's sums to
        the scalar to differentiate. The gradients of all micro-batches add to the batch's own.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jnp.arange(8.0).reshape(4, 2), jnp.eye(2)[jnp.array([0, 1, 1, 0])]
        >>> sums = lambda scale, x, y: class_sums(x * scale + 1.0, y)
        >>> total = sums(2.0, x[:2], y[:2]) + sums(2.0, x[2:], y[2:])
        >>> loss, linearized = linearize_at(ClassSums.gini, total)
        >>> part = jax.grad(lambda scale, x, y: linearized(sums(scale, x, y)))
        >>> parts = part(2.0, x[:2], y[:2]) + part(2.0, x[2:], y[2:])
        >>> bool(jnp.isclose(parts, jax.grad(lambda s: gini_loss(x * s + 1.0, y))(2.0)))
        True
    """
    value, cotangent = jax.value_and_grad(loss_of_sums)(total)
    cotangent = lax.stop_gradient(cotangent)

    def linearized(sums: Any) -> jax.Array:
        products = jax.tree.map(lambda ct, part: (ct * part).sum(), cotangent, sums)
        return jax.tree.reduce(jnp.add, products)

    return value, linearized


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RunningSums:
    r"""Exponential moving average of class sums, for batches that hold few examples of a class.

    $$h_t = d\, h_{t-1} + (1 - d)\, s_t, \quad \hat h_t = h_t / (1 - d^t)$$

    The history carries no gradient; that of the batch's own sums is scaled by their share of the
    blend, `(1 - d) / (1 - d^t)`, and a term weight may make up for it.

    Attributes:
        average: `ClassSums`, the biased average `h`, zero at the start.
        weight: scalar, `1 - d^t`.

    Example:
        >>> import jax.numpy as jnp
        >>> batch = class_sums(jnp.ones((4, 3)), jnp.array([0, 1, 1, 0]), num_classes=2)
        >>> blended, state = RunningSums.zeros(num_features=3, num_classes=2).update(batch, 0.9)
        >>> print(f"{blended.mass[0]:.3f}")  # bias-corrected: after one batch, that batch
        2.000
    """

    average: ClassSums
    weight: jax.Array

    @staticmethod
    def zeros(num_features: int, num_classes: int) -> "RunningSums":
        """The state before the first batch."""
        sums = ClassSums(jnp.zeros((num_features, num_classes)), jnp.zeros((num_classes,)))
        return RunningSums(sums, jnp.zeros(()))

    def update(
        self, batch: ClassSums, decay: float | jax.Array
    ) -> tuple[ClassSums, "RunningSums"]:
        """The blend of history and batch, bias-corrected, and the next state.

        Args:
            batch: the batch's sums, already summed over devices.
            decay: `d` in `[0, 1)`; 0 is the batch alone.
        """
        if isinstance(decay, (int, float)) and not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must lie in [0, 1)")
        history = lax.stop_gradient(self)
        average = jax.tree.map(
            lambda h, s: decay * h + (1 - decay) * s, history.average, batch
        )
        weight = decay * history.weight + (1 - decay)
        blended = jax.tree.map(lambda h: h / weight, average)
        return blended, lax.stop_gradient(RunningSums(average, weight))
