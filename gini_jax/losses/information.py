"""Mutual information of features and classes: purity and balance in one term."""

import jax
import jax.numpy as jnp

from gini_jax.losses.class_sums import ClassSums, class_sums
from gini_jax.losses.discriminability import class_means
from gini_jax.losses.from_sums import on_features


@on_features(ClassSums, class_sums)
def mutual_information_loss(sums: ClassSums) -> jax.Array:
    """Negative mutual information between features and classes.

    `mutual_information = -sum_ck P[c,k] log(P[c,k] / (P[c] P[k]))`, where `P = S / sum_ck S` is a
    joint distribution made of the class means `S`, and `P[c]`, `P[k]` are its margins.

    It is `H(class | feature) - H(class)`: the first makes features pure, as the Gini term does, the
    second spreads them over the classes, as the KL term does. Features count by their activation.
    This project's own, not the paper's.

    Returns:
        Scalar in `[-log min(C, K), 0]`, in nats: `-log K` if each feature fires for one class and
        all classes get the same activation, 0 for flat profiles. Dead features do not count.

    References:
        T. Cover, J. Thomas, "Elements of information theory", 1991, equation 2.28.

    Examples:
        >>> import jax.numpy as jnp
        >>> print(f"{mutual_information_loss(jnp.eye(2), jnp.eye(2)):.4f}")  # -log 2
        -0.6931
    """
    means = class_means(sums)  # [K, C]
    largest = jax.lax.stop_gradient(means.max())
    means = means / jnp.where(largest > 0, largest, jnp.ones_like(largest))
    total = means.sum()
    joint = means / jnp.where(total > 0, total, jnp.ones_like(total))

    there = joint > 0
    of_feature, of_class = joint.sum(axis=0, keepdims=True), joint.sum(axis=1, keepdims=True)
    # The logarithm of a ratio near 1 is exact where a difference of entropies is not.
    ratio = jnp.where(there, joint, 1.0) / jnp.where(there, of_feature, 1.0)
    ratio = ratio / jnp.where(there, of_class, 1.0)
    return -jnp.maximum((joint * jnp.log(ratio)).sum(), 0.0)
