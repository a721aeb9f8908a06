"""How discriminative single features are: Gini impurity and KL over a whole split."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gini_jax.evals.inputs import Inputs
from gini_jax.losses import class_profile, class_sums, gini_impurity, gini_loss, kl_loss

KEYS = {
    "feature_gini": "mean Gini impurity over the whole test split",
    "feature_kl": "KL of the features' class distribution from the split's own",
    "feature_kl_uniform": "KL of the features' class distribution from the balanced one",
    "dead_features": "share of the features that never fire on the test split",
}
TITLES = {
    "feature_gini": ("Gini impurity of the features", False),
    "feature_kl": ("KL from the split's class distribution", False),
    "feature_kl_uniform": ("KL from the balanced distribution", False),
}


def evaluate(inputs: Inputs) -> dict[str, Any]:
    """The numbers of `KEYS`; per layer, `profile/LAYER [C, K]` and `impurity/LAYER [C]`."""
    layers, labels = inputs.test.layers, inputs.test.labels
    terms = feature_terms(layers, labels, inputs.num_classes)
    found: dict[str, Any] = {"dead_features": terms.pop("dead")}
    found |= {f"feature_{name}": value for name, value in terms.items()}
    for layer, activations in layers.items():
        profile = profile_of(activations, labels, inputs.num_classes)
        found[f"profile/{layer}"] = profile
        found[f"impurity/{layer}"] = np.asarray(jax.jit(gini_impurity)(profile))
    return found


def feature_terms(
    layers: dict[str, Float[np.ndarray, "N C"]], labels: Int[np.ndarray, " N"], num_classes: int
) -> dict[str, float]:
    """The paper's terms of a split, averaged over the layers.

    Args:
        layers: mean absolute activations by layer.
        labels: the classes.
        num_classes: `K`.

    Returns:
        `gini`; `kl`, against the split's own class distribution, so it also measures the imbalance
        of an unbalanced split; `kl_uniform`, against the balanced distribution; and `dead`, the
        share of the features that never fire.

    Examples:
        >>> terms = feature_terms({"pooled": np.eye(4)}, np.arange(4), 4)
        >>> terms["gini"], terms["kl"]
        (0.0, 0.0)
    """
    terms = _terms(layers, labels, num_classes)
    found = {name: float(np.mean(of_layers)) for name, of_layers in terms.items()}
    return found | {"dead": float(np.mean([(a.max(axis=0) == 0).mean() for a in layers.values()]))}


@partial(jax.jit, static_argnames="num_classes")
def _terms(
    layers: dict[str, Float[Array, "N C"]], labels: Int[Array, " N"], num_classes: int
) -> dict[str, list[Float[Array, ""]]]:
    uniform = jnp.full(num_classes, 1 / num_classes)
    by_layer = [class_sums(x, labels, num_classes=num_classes) for x in layers.values()]
    return {
        "gini": [gini_loss(sums) for sums in by_layer],
        "kl": [kl_loss(sums) for sums in by_layer],
        "kl_uniform": [kl_loss(sums, target=uniform) for sums in by_layer],
    }


def profile_of(
    activations: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"], num_classes: int
) -> Float[np.ndarray, "C K"]:
    """Class profile of each feature over a whole split."""
    return np.asarray(_profile(activations, labels, num_classes))


@partial(jax.jit, static_argnames="num_classes")
def _profile(
    activations: Float[Array, "N C"], labels: Int[Array, " N"], num_classes: int
) -> Float[Array, "C K"]:
    return class_profile(class_sums(activations, labels, num_classes=num_classes))
