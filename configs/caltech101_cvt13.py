"""CvT-13 on Caltech-101: Adamax, 200 epochs, cosine from 2e-3 to 5e-5."""

from ml_collections import ConfigDict

from gini_jax.config.recipes import caltech101, cvt_from_scratch


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    return cvt_from_scratch(caltech101("caltech101_cvt13", objective))
