"""The command's modes: one file per mode, with its flags and `main`."""

import gini_jax.config.defaults  # noqa: F401  # fills the table of settings
