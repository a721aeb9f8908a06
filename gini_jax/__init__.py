"""gini_jax: the discriminability-enforcing loss (arXiv 2202.07073) in JAX.

`gini_jax.losses` stands alone and needs only jax. The other modules are the training code base
(`pip install "gini_jax[train]"`). From Python, `gini_jax.get_config(name)` gives the settings of a
run, `gini_jax.train(config)` trains it, `gini_jax.compare(runs)` compares several, and
`gini_jax.load(workdir)` opens a network that was trained. `gini_jax.HeadClassifier` is a classifier
on feature vectors, in scikit-learn's terms.
"""

from typing import Any

from gini_jax.errors import lacking
from gini_jax.version import __version__

__all__ = [
    "Callback",
    "HeadClassifier",
    "__version__",
    "compare",
    "get_config",
    "load",
    "losses",
    "train",
]

_PLACES = {
    "get_config": ("gini_jax.api", "get_config"),
    "load": ("gini_jax.trained", "load"),
    "losses": ("gini_jax.losses", None),
    "train": ("gini_jax.api", "train"),
    "compare": ("gini_jax.api", "compare"),
    "HeadClassifier": ("gini_jax.heads", "HeadClassifier"),
    "Callback": ("gini_jax.training.loop", "Callback"),
}


def __getattr__(name: str) -> Any:
    """Imports a member when it is first used, so that nothing heavy is imported before."""
    import importlib

    if name not in _PLACES:
        raise AttributeError(f"module 'gini_jax' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"gini_jax.{name}: {lacking(error)}", name=error.name) from error
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
