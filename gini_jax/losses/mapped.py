"""Which mapped axes an array differs along, where shard_map keeps track of it."""

from typing import Any

import jax
from jax import lax


def mapped_axes(tree: Any) -> frozenset[Any]:
    """The axes along which some array of a tree differs; none outside shard_map."""
    return frozenset[Any]().union(*[_axes_of(jax.typeof(x)) for x in jax.tree.leaves(tree)])


def _axes_of(kind: Any) -> frozenset[Any]:
    if hasattr(kind, "mat"):  # jax 0.10 or newer
        return kind.mat.varying  # type: ignore[no-any-return]
    return getattr(kind, "vma", frozenset())


def varying_like(tree: Any, other: Any) -> Any:
    """Arrays that may differ along the axes along which those of another tree do.

    Each device then differentiates them on its own, and they can be carried by a scan whose steps
    make them differ.
    """
    axes = mapped_axes(other)

    def varying(x: jax.Array) -> jax.Array:
        missing = tuple(axes - mapped_axes(x))
        if not missing:
            return x
        if hasattr(lax, "pcast"):
            return lax.pcast(x, missing, to="varying")
        return lax.pvary(x, missing)  # type: ignore[attr-defined, no-any-return]  # before pcast

    return jax.tree.map(varying, tree) if axes else tree
