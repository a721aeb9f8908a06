"""Monosemanticity: the examples that a feature fires for resemble each other."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.class_sums import label_rows, on_any_mesh, ratio, spatial_mean
from gini_jax.losses.pairs import unit_vectors
from gini_jax.losses.rules import (
    AxisName,
    bounded,
    check_class_labels,
    check_features,
    check_where,
    known_array,
)


@bounded
def monosemantic_loss(
    features: jax.Array,
    labels: jax.Array | None = None,
    *,
    by: Literal["features", "labels"] = "features",
    embeddings: jax.Array | None = None,
    num_classes: int | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis: int = -1,
) -> jax.Array:
    """One minus the MonoScore of the features, over all pairs of the global batch.

    With `a[n,c] = (x[n,c] - min_n x) / (max_n x - min_n x)`, and cosines `s` of embeddings,
    `loss = 1 - mean_c sum_{n != m} a[n,c] a[m,c] s[n,m] / sum_{n != m} a[n,c] a[m,c]`.

    It needs time and memory in `O(N)`: with unit embeddings `e` and `g[c] = sum_n a[n,c] e[n]`,
    the cosines add to `|g[c]|^2 - sum_n a[n,c]^2`. Embeddings are constants.

    With one-hot labels as embeddings, the score of a feature is the chance that two different
    examples, drawn in proportion to its activation, are of one class: one minus the Gini impurity
    of its activation over the classes, but for the pairs of an example with itself.

    Args:
        features: `[N, ..., C]` activations of any float type; their mean over spatial or token axes
            is taken.
        labels: `[N, K]` one-hot or soft rows, or `[N]` integers together with `num_classes`. Needed
            for `by="labels"` alone.
        by: what says which examples resemble each other: the features themselves or the labels.
        embeddings: `[N, D]`, what says it instead, such as the features of another network, as in
            the paper.
        num_classes: `K`; needed for integer labels only, where they count.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to sum over.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.

    Returns:
        Scalar in `[0, 2]`: the mean over the features that fire for two examples or more; 0, with
        zero gradient, if there are none.

    Raises:
        ValueError: the shapes do not fit, labels are missing or invalid, or both `by="labels"` and
            embeddings are given.
        TypeError: the features are not floating-point.

    References:
        Nasiri-Sarvi, Nguyen, Rivaz, Samaras, Hosseini, "MonoLoss: a training objective for
        interpretable monosemantic representations", 2026 (arXiv 2602.12403). They subtract the
        score, and take embeddings from a network that is not trained.

    Examples:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> float(monosemantic_loss(x)), float(monosemantic_loss(x[:, ::-1] + x))
        (0.0, 0.0)
        >>> float(monosemantic_loss(x, jnp.array([0, 1, 0, 1]), by="labels", num_classes=2))
        1.0
    """
    features = jnp.asarray(features)
    axis = check_features(features, axis)
    labels = None if labels is None else known_array(labels)
    weights = check_where(where, features if labels is None else labels)
    if by == "labels" and (labels is None or embeddings is not None):
        raise ValueError("by='labels' needs labels, and no embeddings; leave embeddings out")
    if labels is not None and (by == "labels" or labels.ndim == 2):
        check_class_labels(labels, features, num_classes, weights)
    if embeddings is not None:
        embeddings = jnp.asarray(embeddings)
        if embeddings.ndim != 2 or len(embeddings) != len(features):
            raise ValueError(
                f"embeddings have shape {embeddings.shape}; for features of shape "
                f"{features.shape} they must be [{len(features)}, D]"
            )

    def loss(features: jax.Array, labels: Any, embeddings: Any, weights: Any) -> jax.Array:
        x = spatial_mean(features, weights, axis, signed=True)
        w = jnp.ones(len(x), x.dtype) if weights is None else weights.astype(x.dtype)
        seen = x if embeddings is None else embeddings.astype(x.dtype)
        if by == "labels":
            classes = labels.shape[1] if labels.ndim == 2 else num_classes or 0
            seen, w = label_rows(labels, weights, classes, x.dtype)
        seen = lax.stop_gradient(jnp.where((w != 0)[:, None], seen, 0.0))
        return _loss(x, unit_vectors(seen), w, axis_name)

    return on_any_mesh(loss, features, labels, embeddings, weights)


def _loss(x: jax.Array, units: jax.Array, w: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """The loss of features `[n, C]`, unit embeddings `[n, D]` and weights `[n]` of this device."""
    high, low = _extremes(x, w != 0, axis_name)
    span = high - low
    span = jnp.where(lax.stop_gradient(span) > 1e-15, span, jnp.zeros_like(span))
    a = w[:, None] * (x - low[None]) / jnp.where(span > 0, span, jnp.ones_like(span))[None]
    has_direction = jnp.square(units).sum(axis=1)
    summed = {
        "g": jnp.einsum("nc,nd->cd", a, units, precision=lax.Precision.HIGHEST),
        "total": a.sum(axis=0),
        "own": jnp.square(a).sum(axis=0),
        "own_seen": (jnp.square(a) * has_direction[:, None]).sum(axis=0),
    }
    if axis_name is not None:
        summed = lax.psum(summed, axis_name)
    pairs = jnp.square(summed["total"]) - summed["own"]
    cosines = jnp.square(summed["g"]).sum(axis=1) - summed["own_seen"]
    # A feature that fires for one example has no pair, but for rounding error.
    fires = (span > 0) & (pairs > 1e-6 * jnp.square(summed["total"]))
    score = cosines / jnp.where(fires, pairs, jnp.ones_like(pairs))
    lost = jnp.where(fires, 1 - score, jnp.zeros_like(score))
    value = ratio(lost.sum(), fires.sum().astype(x.dtype))
    broken = jnp.isnan(summed["total"]).any()
    return jnp.where(broken, summed["total"].sum(), value)


def _extremes(
    x: jax.Array, there: jax.Array, axis_name: AxisName | None
) -> tuple[jax.Array, jax.Array]:
    """`[C]` largest and smallest features over all devices; ties share their gradient."""
    signed = jnp.stack([x, -x])  # [2, n, C]
    candidates = jnp.where(there[:, None], lax.stop_gradient(signed), -jnp.inf)
    best = candidates.max(axis=1, initial=-jnp.inf)
    if axis_name is not None:
        best = lax.pmax(best, axis_name)
    ties = (candidates == best[:, None, :]).astype(x.dtype)
    sums = jnp.stack([jnp.where(ties > 0, signed, 0.0).sum(axis=1), ties.sum(axis=1)])
    if axis_name is not None:
        sums = lax.psum(sums, axis_name)
    # The value is that of an extreme; the gradient is shared among all that attain it.
    mean = ratio(sums[0], sums[1])
    return mean[0], -mean[1]
