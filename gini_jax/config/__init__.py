"""The settings of a run: where they are declared, and how a config of them is made and changed.

`registry` holds the components to choose from, `change` creates and changes configs, `defaults`
lists the settings that every run has, `files` reads config files, and `recipes` holds what the
shipped configs share.
"""

from typing import Any

__all__ = ["default_config", "set_component", "set_model", "set_objective", "set_term"]


def __getattr__(name: str) -> Any:
    """Imports what config files use only when it is used, because the losses need only jax."""
    if name not in __all__:
        raise AttributeError(f"module 'gini_jax.config' has no attribute {name!r}")
    import gini_jax.config.defaults  # noqa: F401  # fills the table of settings
    from gini_jax.config import change

    return getattr(change, name)
