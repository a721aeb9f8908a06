"""What the server of tests/helpers/program.py imports: all that a run imports at some point."""

import contextlib
import importlib

from gini_jax.cli import MODES

OTHERS = ("matplotlib.backends.backend_agg", "scipy.stats", "sklearn.linear_model", "gcsfs")
MODULES = [f"gini_jax.modes.{mode}" for mode in MODES]

for module in (*MODULES, "gini_jax.analysis.figures", "gini_jax.evals", *OTHERS):
    with contextlib.suppress(ImportError):  # of an extra that is not installed
        importlib.import_module(module)
