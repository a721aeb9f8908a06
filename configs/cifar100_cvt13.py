"""CvT-13 on CIFAR-100 from scratch: Adamax, 200 epochs, cosine from 2e-3 to 5e-5.

To fine-tune from ImageNet weights as the paper does: `--config.model.init=FILE
--config.num_epochs=25 --config.schedule.name=constant --config.schedule.learning_rate=5e-4
--config.dataset.image_size=64`.
"""

from ml_collections import ConfigDict

from gini_jax.config.recipes import cifar100, cvt_from_scratch


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    return cvt_from_scratch(cifar100("cifar100_cvt13", objective))
