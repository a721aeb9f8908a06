"""Losses over pairs, in the form on features and labels: one signature, one docstring."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Protocol, TypeAlias

import jax

from gini_jax.config.registry import COUNT
from gini_jax.losses.class_sums import Reduction
from gini_jax.losses.pairs import (
    Against,
    Compare,
    Options,
    Positives,
    References,
    RowLoss,
    mean_over_anchors,
)
from gini_jax.losses.rules import AxisName, bounded, documented

ChunkSize: TypeAlias = Annotated[int | None, COUNT]

_BATCH = """    Args:
        features: `[N, ..., C]` activations of any float type; their mean over spatial or token axes
            is taken.
        labels: `[N]` integers; a negative one leaves the example out. Or `[N, K]` rows: an example
            has each class of which its row has the largest share, so rows of several ones are
            labels of several classes, and examples that share a class belong together. With
            `positives`, what that takes.
"""
_OPTIONS = """\
        where: `[N]` mask, or weights of the anchors; 1 by default. Rows of weight 0 are left out
            altogether, and may hold NaN.
        axis_name: name or names of mapped axes that the batch is divided over; the pairs are those
            of the global batch.
        axis: the feature axis: -1 for channels last, 1 for channels first `[N, C, ...]`.
        chunk_size: anchors at a time: memory is `O(chunk_size N)`; all at once by default.
        references: `(features [M, C], labels [M])`, and a mask `[M]` if some do not count: further
            examples to compare the anchors with, the same on all devices, such as those of a
            `Queue`. They are no anchors, and have no gradient unless they are differentiated.
        against: `"batch"`: anchors are compared with the batch, and with the references if there
            are some; `"references"`: with these alone, as queries with a gallery.
        positives: from the labels of `n` and of `M` examples to which pairs are positive, `[n, M]`
            booleans, all others being negative; or to two such tables, the positive and the
            negative pairs, so that some are neither.
        reduction: `"mean"`; or `"none"`, to get values of the anchors.

"""
_RAISES = """\
        With `reduction="none"`, `[N]` values and the `[N]` mask of the anchors that count. The mean
        of the values that count, over all devices, is the scalar; `where` and the number of an
        anchor's pairs, where the loss is a mean over pairs, are factors in them.

    Raises:
        ValueError: the shapes do not fit, labels are invalid, or a setting is out of bounds.
        TypeError: the features are not floating-point.
"""


class PairLoss(Protocol):
    """A loss over the pairs of a batch."""

    __name__: str

    def __call__(
        self,
        features: jax.Array,
        labels: jax.Array,
        *,
        where: jax.Array | None = None,
        axis_name: AxisName | None = None,
        axis: int = -1,
        chunk_size: ChunkSize = None,
        references: References | None = None,
        against: Against = "batch",
        positives: Positives | None = None,
        reduction: Reduction = "mean",
        **settings: Any,
    ) -> Any:
        """The value; `settings` are those of the loss."""


def over_pairs(make: Callable[..., tuple[RowLoss, Compare]]) -> PairLoss:
    """Makes a public loss of a function from settings to the loss of rows of the table of pairs.

    Args:
        make: takes settings by keyword, and gives the loss of some anchors against all examples,
            and what the table holds. Its docstring has `Args` for its settings alone.

    Examples:
        >>> import jax.numpy as jnp
        >>> from gini_jax.losses.pairs import cosine
        >>> @over_pairs
        ... def mean_positive_loss(*, scale: float = 1.0):
        ...     def of_rows(rows):
        ...         return -scale * (rows.values * rows.positive).sum(1), rows.positive.sum(1)
        ...     return of_rows, cosine
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0]])
        >>> float(mean_positive_loss(x, jnp.array([0, 0]), scale=2.0))
        -2.0
    """
    own = [
        one.replace(kind=one.KEYWORD_ONLY) for one in inspect.signature(make).parameters.values()
    ]
    names = {one.name for one in own}

    @functools.wraps(make)
    def loss(features: Any, labels: Any, **options: Any) -> Any:
        settings = {name: options.pop(name) for name in names & options.keys()}
        row_loss, compare = make(**settings)
        return mean_over_anchors(row_loss, compare, features, labels, Options(**options))

    shared = list(inspect.signature(PairLoss.__call__).parameters.values())[1:-1]
    signature = inspect.Signature(shared[:2] + own + shared[2:], return_annotation=Any)
    loss.__signature__ = signature  # type: ignore[attr-defined]
    loss.__doc__ = documented(make.__doc__ or "", _BATCH, _OPTIONS, _RAISES)
    found: Any = bounded(loss)
    return found  # type: ignore[no-any-return]
