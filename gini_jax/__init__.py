"""gini_jax: the discriminability-enforcing loss (arXiv 2202.07073) in JAX.

`gini_jax.losses` stands alone and needs only jax. The other modules are the training code base
(`pip install "gini_jax[train]"`); `gini_jax.load(workdir)` opens a network that it trained.
"""

from typing import Any

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Imports `losses` and `load` when they are first used, and nothing heavy before."""
    import importlib

    if name == "losses":
        return importlib.import_module("gini_jax.losses")
    if name == "load":
        return importlib.import_module("gini_jax.trained").load
    raise AttributeError(f"module 'gini_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "load", "losses"]
