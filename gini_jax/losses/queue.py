"""A queue of earlier examples, to compare those of a batch with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gini_jax.losses.rules import AxisName, check_where, known_array


class Queue(NamedTuple):
    """The latest examples of earlier batches: a pytree of constant size.

    Attributes:
        features: `[M, C]`.
        labels: `[M]` integers, or `[M, K]` rows.
        start: place of the oldest example, which the next one replaces.
        filled: how many places are filled.

    References:
        Wang, Zhang, Huang, Scott, "Cross-batch memory for embedding learning", 2020 (arXiv
        1912.06798), section 3; the dictionary of He et al., "Momentum contrast" (arXiv 1911.05722).

    Examples:
        >>> import jax.numpy as jnp
        >>> from gini_jax.losses import supcon_loss
        >>> queue = Queue.create(3, channels=2)
        >>> queue = queue.push(jnp.eye(2), jnp.array([0, 1]))
        >>> features, labels, there = queue.examples()
        >>> labels.tolist(), there.tolist()
        ([0, 1, -1], [True, True, False])
        >>> x = jnp.array([[1.0, 0.0]])
        >>> loss = supcon_loss(x, jnp.array([0]), references=queue.examples(), temperature=1.0)
        >>> print(f"{loss:.4f}")  # log(1 + 1 / e)
        0.3133
    """

    features: jax.Array
    labels: jax.Array
    start: jax.Array
    filled: jax.Array

    @classmethod
    def create(
        cls,
        size: int,
        channels: int,
        *,
        num_classes: int | None = None,
        dtype: jax.typing.DTypeLike = jnp.float32,
        label_dtype: jax.typing.DTypeLike = jnp.int32,
    ) -> "Queue":
        """An empty queue.

        Args:
            size: `M`, how many examples it holds.
            channels: `C`.
            num_classes: `K` of row labels; None: labels are integers.
            dtype: of the features.
            label_dtype: of integer labels.

        Raises:
            ValueError: the size is not positive.
        """
        if size < 1:
            raise ValueError(f"size={size}; a queue holds at least one example")
        labels = jnp.full(size, -1, label_dtype)
        if num_classes is not None:
            labels = jnp.zeros((size, num_classes), dtype)
        start, filled = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)  # may be donated
        return cls(jnp.zeros((size, channels), dtype), labels, start, filled)

    def push(
        self,
        features: jax.Array,
        labels: jax.Array,
        *,
        where: jax.Array | None = None,
        axis_name: AxisName | None = None,
    ) -> "Queue":
        """The queue with the examples of a batch in the place of the oldest ones.

        Args:
            features: `[N, C]`; they are stored without a gradient.
            labels: `[N]` integers, or `[N, K]` rows, as at its creation.
            where: `[N]` mask; a row of 0 takes a place, but belongs to nothing.
            axis_name: name or names of mapped axes that the batch is divided over: all devices push
                the global batch, so that the queue is the same on all.

        Raises:
            ValueError: the shapes do not fit.
        """
        features, labels = jnp.asarray(features), known_array(labels)
        shape = (len(features), *self.labels.shape[1:])
        if features.shape[1:] != self.features.shape[1:] or labels.shape != shape:
            raise ValueError(
                f"features of shape {features.shape} and labels of shape {labels.shape} do not fit "
                f"a queue of features {self.features.shape} and labels {self.labels.shape}"
            )
        kept = check_where(where, labels)
        x = lax.stop_gradient(features).astype(self.features.dtype)
        y = lax.stop_gradient(labels).astype(self.labels.dtype)
        if kept is not None:
            there = kept != 0
            x = jnp.where(there[:, None], x, jnp.zeros_like(x))
            none = jnp.zeros_like(y) if y.ndim == 2 else jnp.full_like(y, -1)
            y = jnp.where(there.reshape(-1, *[1] * (y.ndim - 1)), y, none)
        if axis_name is not None:
            x, y = lax.all_gather((x, y), axis_name, tiled=True)
        size = len(self.features)
        x, y = x[-size:], y[-size:]  # of more, the latest
        places = (self.start + jnp.arange(len(x))) % size
        return Queue(
            self.features.at[places].set(x),
            self.labels.at[places].set(y),
            (self.start + len(x)) % size,
            jnp.minimum(self.filled + len(x), size),
        )

    def examples(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Features, labels, and the mask of the places that are filled: for `references=`."""
        return self.features, self.labels, jnp.arange(len(self.features)) < self.filled
