"""The paper's joint objective: several layers, a weight each, from activations or from sums."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.class_sums import ClassSums, as_class_sums
from gini_jax.losses.discriminability import Target, kl_loss
from gini_jax.losses.rules import AxisName
from gini_jax.losses.term import TermContext, mean_over
from gini_jax.losses.terms import spec_of

Layer: TypeAlias = jax.Array | ClassSums
Layers: TypeAlias = Layer | Mapping[str, Any] | Sequence[Any]
Weights: TypeAlias = float | jax.Array | Mapping[str, Any] | Sequence[Any]
Impurity: TypeAlias = Literal["gini", "renyi", "entropy"]


def discriminability_loss(
    features: Layers,
    labels: jax.Array | None = None,
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
            one per layer. Or the `ClassSums` of each layer, without labels: accumulated over micro-
            batches (`linearize_at`), blended with their history (`RunningSums`), or gathered over a
            whole data set.
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
        axis_name: name or names of mapped axes to sum over, in one collective.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.

    Returns:
        The weighted sum, scalar; and `{"gini": scalar, "kl": scalar}`, the unweighted means over
        the layers. `"gini"` holds whichever impurity was chosen.

    Raises:
        ValueError: the shapes do not fit, there is no layer, the weights do not match the layers,
            the impurity is unknown or is entropy for sums, or `target` is not a distribution.
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
    if impurity not in (known := get_args(Impurity)):
        raise ValueError(f"unknown impurity {impurity!r}; known: {', '.join(map(repr, known))}")
    layers = _by_layer(features)
    if not layers:
        raise ValueError("features hold no layer; give at least one [N, ..., C] array")
    signed = impurity == "entropy"
    if signed and any(isinstance(layer, ClassSums) for layer in layers.values()):
        raise ValueError(
            "impurity='entropy' needs features: its sums are signed and the KL term's are not; "
            "give features, or add entropy_loss(signed_sums) and kl_loss(sums)"
        )
    batch: Any = {"num_classes": num_classes, "where": where, "axis": axis}
    kinds = {False, signed}
    sums = {
        kind: {name: as_class_sums(x, labels, signed=kind, **batch) for name, x in layers.items()}
        for kind in sorted(kinds)
    }
    if axis_name is not None:
        summed = lax.psum(sums, axis_name)  # which sorts the keys
        sums = {kind: {name: summed[kind][name] for name in layers} for kind in sums}
    of_kind = {"class_sums": sums[False], "signed_class_sums": sums.get(True)}
    gini_term: Any = spec_of(impurity).create(TermContext())
    gini = gini_term.by_layer(of_kind)
    kl = {name: kl_loss(x, target=target) for name, x in sums[False].items()}
    weighted_gini = mean_over(gini, _weights_by_layer("gini_weight", gini_weight, layers))
    weighted_kl = mean_over(kl, _weights_by_layer("kl_weight", kl_weight, layers))
    return weighted_gini + weighted_kl, {"gini": mean_over(gini), "kl": mean_over(kl)}


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
