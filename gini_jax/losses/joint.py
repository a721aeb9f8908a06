"""The paper's joint objective: several layers, a weight each, from activations or from sums."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.class_sums import ClassSums
from gini_jax.losses.discriminability import Target
from gini_jax.losses.rules import AxisName
from gini_jax.losses.terms import SUMS, About, entry_of, mean_over

Layers: TypeAlias = jax.Array | Mapping[str, Any] | Sequence[Any]
Weights: TypeAlias = float | jax.Array | Mapping[str, Any] | Sequence[Any]
Impurity: TypeAlias = Literal["gini", "renyi", "entropy"]


def discriminability_loss(
    features: Layers,
    labels: jax.Array,
    *,
    gini_weight: Weights = 0.5,
    kl_weight: Weights = 0.5,
    impurity: Impurity = "gini",
    target: Target = None,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The terms to add to cross-entropy, over one layer or several.

    `mean over layers (gini_weight[l] gini[l]) + mean over layers (kl_weight[l] kl[l])`.

    Args:
        features: `[N, ..., C]` activations of one layer, or a mapping or sequence of such arrays,
            one per layer.
        labels: `[N, K]` one-hot or soft rows, or `[N]` integers together with `num_classes`.
        gini_weight: one number, or one per layer: a mapping with the keys of `features`, or a
            sequence in its order. Jax sorts the keys of a mapping that is an argument of a
            transformed function, so give a mapping of weights for a mapping of layers.
        kl_weight: likewise.
        impurity: `"gini"`; or `"renyi"` or `"entropy"` to put `renyi_loss` or `entropy_loss` in the
            place of `gini_loss`.
        target: the distribution that the KL term compares with; see `kl_loss`.
        num_classes: `K`; needed for integer labels only.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to sum over.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.

    Returns:
        The weighted sum, scalar; and `{"gini": scalar, "kl": scalar}`, the unweighted means over
        the layers. `"gini"` holds whichever impurity was chosen.

    Raises:
        ValueError: the shapes do not fit, there is no layer, the weights do not match the layers,
            the impurity is unknown, or `target` is no distribution.
        TypeError: the features are not floating-point.

    References:
        arXiv 2202.07073, section 3: the joint objective.

    Examples:
        >>> import jax.numpy as jnp
        >>> features = {"stage4": jnp.ones((2, 4, 4, 8)), "pooled": jnp.ones((2, 8))}
        >>> loss, terms = discriminability_loss(features, jnp.eye(2), gini_weight=0.5)
        >>> float(loss), float(terms["gini"]), float(terms["kl"])
        (0.25, 0.5, 0.0)
    """
    batch: Any = {"num_classes": num_classes, "where": where, "axis_name": axis_name, "axis": axis}
    sums, signed_sums = layer_sums(features, labels, impurity=impurity, **batch)
    weights: Any = {"gini_weight": gini_weight, "kl_weight": kl_weight, "target": target}
    return discriminability_from_sums(sums, signed_sums=signed_sums, impurity=impurity, **weights)


def layer_sums(
    features: Layers,
    labels: jax.Array,
    *,
    impurity: Impurity = "gini",
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
) -> tuple[dict[str, ClassSums], dict[str, ClassSums] | None]:
    """Class sums of every layer, summed over the mapped axes in one collective.

    Args:
        features: `[N, ..., C]` activations of one layer, or a mapping or sequence of such arrays,
            one per layer.
        labels: `[N, K]` one-hot or soft rows, or `[N]` integers together with `num_classes`.
        impurity: the impurity that the sums are for; `"entropy"` needs signed ones too.
        num_classes: `K`; needed for integer labels only.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to sum over.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.

    Returns:
        `ClassSums` by layer; and the signed ones if `impurity="entropy"`, else None. The layers of
        a sequence are named `"0"`, `"1"` and so on.

    Raises:
        ValueError: the shapes do not fit, there is no layer, or the impurity is unknown.
        TypeError: the features are not floating-point.

    Examples:
        >>> import jax.numpy as jnp
        >>> sums, _ = layer_sums([jnp.ones((2, 3))], jnp.eye(2))
        >>> sums["0"].activation.shape
        (3, 2)
    """
    layers = _by_layer(features)
    if not layers:
        raise ValueError("features hold no layer; give at least one [N, ..., C] array")
    batch: Any = {"num_classes": num_classes, "where": where, "axis": axis}
    sums = {
        kind: {name: SUMS[kind](layer, labels, **batch) for name, layer in layers.items()}
        for kind in dict.fromkeys(["class_sums", _impurity_term(impurity).kind])
    }
    if axis_name is not None:
        summed = lax.psum(sums, axis_name)  # which sorts the keys
        sums = {kind: {name: summed[kind][name] for name in layers} for kind in sums}
    return sums["class_sums"], sums.get("signed_class_sums")


def discriminability_from_sums(
    sums: Mapping[str, ClassSums],
    *,
    signed_sums: Mapping[str, ClassSums] | None = None,
    gini_weight: Weights = 0.5,
    kl_weight: Weights = 0.5,
    impurity: Impurity = "gini",
    target: Target = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`discriminability_loss` as a function of the class sums of each layer.

    For sums that do not come from one batch: accumulated over micro-batches (`linearize_at`),
    blended with their history (`RunningSums`), or gathered over a whole data set.

    Args:
        sums: `ClassSums` by layer.
        signed_sums: the signed sums by layer; needed for `impurity="entropy"`.
        gini_weight: one number, or one per layer: a mapping with the keys of `sums`, or a
            sequence in its order. Jax sorts the keys of a mapping that is an argument of a
            transformed function, so prefer a mapping.
        kl_weight: likewise.
        impurity: `"gini"`, `"renyi"` or `"entropy"`.
        target: the distribution that the KL term compares with; see `kl_loss`.

    Returns:
        The weighted sum, scalar; and `{"gini": scalar, "kl": scalar}`, the unweighted means over
        the layers.

    Raises:
        ValueError: the weights do not match the layers, the impurity is unknown, `target` is no
            distribution, or the entropy comes without signed sums.

    Examples:
        >>> import jax.numpy as jnp
        >>> sums, _ = layer_sums([jnp.ones((2, 3))], jnp.eye(2))
        >>> float(discriminability_from_sums(sums)[0])
        0.25
    """
    if impurity == "entropy" and signed_sums is None:
        raise ValueError("impurity='entropy' needs signed_sums (class_sums(signed=True))")
    of_kind = {"class_sums": sums, "signed_class_sums": signed_sums}
    kl_term: Any = entry_of("kl").create(About(target))
    gini, kl = _impurity_term(impurity).by_layer(of_kind), kl_term.by_layer(of_kind)
    weighted_gini = mean_over(gini, _weights_by_layer("gini_weight", gini_weight, sums))
    weighted_kl = mean_over(kl, _weights_by_layer("kl_weight", kl_weight, sums))
    return weighted_gini + weighted_kl, {"gini": mean_over(gini), "kl": mean_over(kl)}


def _impurity_term(impurity: str) -> Any:
    known = get_args(Impurity)
    if impurity not in known:
        raise ValueError(f"unknown impurity {impurity!r}; known: {', '.join(map(repr, known))}")
    return entry_of(impurity).create(About())


def _by_layer(features: Layers) -> dict[str, Any]:
    if isinstance(features, Mapping):
        return dict(features)
    if isinstance(features, Sequence):
        return {str(i): layer for i, layer in enumerate(features)}
    return {"0": features}


def _weights_by_layer(
    name: str, weights: Weights, layers: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """A single number stands for all layers."""
    if isinstance(weights, Mapping):
        if set(weights) != set(layers):
            raise ValueError(f"{name} has keys {sorted(weights)}; the layers are {sorted(layers)}")
        weights = [weights[layer] for layer in layers]
    array = jnp.asarray(weights)
    if array.ndim > 1 or array.size not in (1, len(layers)):
        raise ValueError(
            f"{name} has shape {array.shape}; it must be one number, or one for each of the "
            f"{len(layers)} layers {list(layers)}"
        )
    return dict(zip(layers, jnp.broadcast_to(array, (len(layers),)), strict=True))
