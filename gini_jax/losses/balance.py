"""Weights that hold the terms' gradients at fixed ratios to cross-entropy's."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

DECAY = 0.95  # of the moving averages: they span some twenty steps
LARGEST_FACTOR = 1e6  # a term at its minimum has no gradient, and no weight gives it one


class GradientNorms(NamedTuple):
    """Moving averages of the squared norms of gradients with respect to the features.

    Averages of squares hold the root mean square of the ratio. A term's gradient in single batches
    can be many times larger than in others; an average of logarithms would let these pass.

    Attributes:
        ce: that of cross-entropy, scalar.
        terms: by name, that of each term with weight 1, scalar.
    """

    ce: jax.Array
    terms: dict[str, jax.Array]

    @classmethod
    def zeros(cls, names: Iterable[str]) -> "GradientNorms":
        """The averages before the first step."""
        return cls(jnp.zeros(()), {name: jnp.zeros(()) for name in names})

    def update(self, squares: Mapping[str, jax.Array]) -> "GradientNorms":
        """The next averages.

        Args:
            squares: the step's squared norms: of cross-entropy as `ce`, and of each term.
        """

        def blend(old: jax.Array, name: str) -> jax.Array:
            return DECAY * old + (1 - DECAY) * squares[name]

        return GradientNorms(blend(self.ce, "ce"), {n: blend(x, n) for n, x in self.terms.items()})

    def factors(self) -> dict[str, jax.Array]:
        """By term, the weight that makes its gradient as large as that of cross-entropy.

        `factor = sqrt(E |dCE/dx|^2 / E |dterm/dx|^2)`, at most 1e6, and 0 before the first update.
        With weight `r * factor` the ratio of the term's gradient to cross-entropy's is `r`.

        References:
            Esser, Rombach, Ommer, "Taming transformers for high-resolution image synthesis", 2021,
            equation 7: a weight by the ratio of two gradient norms at one layer.

        Examples:
            >>> norms = GradientNorms.zeros(["kl"]).update({"ce": 4.0, "kl": 0.25})
            >>> round(float(norms.factors()["kl"]), 4)
            4.0
        """

        def factor(term: jax.Array) -> jax.Array:
            ratio = jnp.sqrt(self.ce / jnp.maximum(term, 1e-30))
            return jnp.minimum(ratio, LARGEST_FACTOR)

        return {name: factor(term) for name, term in self.terms.items()}
