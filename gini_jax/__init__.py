"""gini_jax: the discriminability-enforcing loss (arXiv 2202.07073) in JAX.

`gini_jax.losses` stands alone and needs jax only; the other modules are the training code base
(`pip install "gini_jax[train]"`).
"""

__version__ = "0.1.0"
