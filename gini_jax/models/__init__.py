"""The networks of the paper, by name, and PyTorch weights for them."""

from gini_jax.models.registry import MODELS, create_model
from gini_jax.models.torch_files import read_torch_file
from gini_jax.models.torch_weights import from_torch, to_torch

__all__ = ["MODELS", "create_model", "from_torch", "read_torch_file", "to_torch"]
