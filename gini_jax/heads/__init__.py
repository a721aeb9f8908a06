"""Heads on feature vectors: what training needs where the network stands still."""

from gini_jax.heads.classifier import HeadClassifier

__all__ = ["HeadClassifier"]
