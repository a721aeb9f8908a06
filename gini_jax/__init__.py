"""gini_jax: the discriminability-enforcing loss (arXiv 2202.07073) in JAX.

`gini_jax.losses` stands alone and needs only jax. The other modules are the training code base
(`pip install "gini_jax[train]"`). From Python, `gini_jax.config(name)` gives the settings of a run,
`gini_jax.train(config)` trains it, `gini_jax.compare(runs)` compares several, and
`gini_jax.load(workdir)` opens a network that was trained.
"""

from typing import Any

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Imports what is used when it is first used, and nothing heavy before."""
    import importlib

    if name in ("losses", "config"):
        return importlib.import_module(f"gini_jax.{name}")
    if name == "load":
        return importlib.import_module("gini_jax.trained").load
    if name in ("train", "compare"):
        return getattr(importlib.import_module("gini_jax.api"), name)
    raise AttributeError(f"module 'gini_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "compare", "config", "load", "losses", "train"]
