"""Turns losses of batch sums into losses of features and labels: one signature, one docstring."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol

import jax

from gini_jax.losses.class_sums import as_sums
from gini_jax.losses.rules import AxisName, bounded, documented

_BATCH = """    Args:
        features: `[N, ..., C]` activations of any float type, with any number of spatial or token
            axes, over which their mean is taken. Or the `KIND` of a batch, without labels.
        labels: `[N, K]` one-hot or soft rows, or `[N]` integers together with `num_classes`.
"""
_WITHOUT_LABELS = """    Args:
        features: `[N, ..., C]` activations of any float type; their mean over spatial or token axes
            is taken. Or the `KIND` of a batch.
        labels: not needed, and not used: accepted because other losses take them.
"""
_OPTIONS = """        num_classes: `K`; needed for integer labels only.
        where: `[N]` mask or example weights; 1 by default. Rows of weight 0 may hold NaN.
        axis_name: name or names of mapped axes to sum over.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.

"""
_RAISES = """    Raises:
        ValueError: the shapes do not fit, integer labels come without `num_classes`, or labels
            whose values are known are invalid; see `checked`.
        TypeError: the features are not floating-point.
"""


class SumLoss(Protocol):
    """A loss of features and labels, or of the sums of a batch."""

    __name__: str
    of_sums: Callable[..., jax.Array]

    def __call__(
        self,
        features: Any,
        labels: jax.Array | None = None,
        *,
        num_classes: int | None = None,
        where: jax.Array | None = None,
        axis_name: AxisName | None = None,
        axis: int = -1,
        **settings: Any,
    ) -> jax.Array:
        """The value; `settings` are those of the loss."""


def on_features(
    kind: type[Any], make: Callable[..., Any], needs_labels: bool = True
) -> Callable[[Callable[..., jax.Array]], SumLoss]:
    """Turns a loss of sums into one of features and labels, which still accepts sums instead.

    Args:
        kind: the type of the sums, such as `ClassSums`.
        make: a function from features and labels to these sums, such as `class_sums`.
        needs_labels: whether it does; if not, labels are accepted, and not used.

    Returns:
        A decorator. The function that it decorates takes sums, and settings by keyword; its
        docstring has `Args` for the settings only. The result keeps that function as `of_sums`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from gini_jax.losses.class_sums import ClassSums, class_sums
        >>> @on_features(ClassSums, class_sums)
        ... def total(sums, scale: float = 1.0):
        ...     return scale * sums.mass.sum()
        >>> list(inspect.signature(total).parameters)[:3]
        ['features', 'labels', 'scale']
        >>> float(total(jnp.ones((3, 2)), jnp.array([0, 1, 1]), num_classes=2))
        3.0
    """

    def decorate(loss: Callable[..., jax.Array]) -> SumLoss:
        settings = list(inspect.signature(loss).parameters.values())[1:]
        own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in settings]

        @functools.wraps(loss)
        def of_batch(
            features: Any,
            labels: Any = None,
            *,
            num_classes: int | None = None,
            where: Any = None,
            axis_name: AxisName | None = None,
            axis: int = -1,
            **settings: Any,
        ) -> jax.Array:
            batch: Any = {"num_classes": num_classes, "where": where}
            batch |= {"axis_name": axis_name, "axis": axis}
            if labels is None and not needs_labels and not isinstance(features, kind):
                return loss(make(features, **batch), **settings)
            return loss(as_sums(kind, make, features, labels, batch), **settings)

        before = list(inspect.signature(SumLoss.__call__).parameters.values())[1:-1]
        before[0] = before[0].replace(annotation=jax.Array | kind)
        signature = inspect.signature(loss).replace(parameters=before[:2] + own + before[2:])
        of_batch.__signature__ = signature  # type: ignore[attr-defined]
        batch = (_BATCH if needs_labels else _WITHOUT_LABELS).replace("KIND", kind.__name__)
        of_batch.__doc__ = documented(loss.__doc__ or "", batch, _OPTIONS, _RAISES)
        found: Any = bounded(of_batch)
        found.of_sums = loss
        return found  # type: ignore[no-any-return]

    return decorate
