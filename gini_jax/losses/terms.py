"""The paper's terms as losses of activations and labels."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.class_sums import AxisName, ClassSums, class_sums, local_sums

Layers: TypeAlias = jax.Array | Mapping[str, Any] | Sequence[Any]
Weights: TypeAlias = float | jax.Array | Mapping[str, Any] | Sequence[Any]


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
            name: local_sums(layer, labels, num_classes, where, signed)
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
