"""CvT-13 on CIFAR-100 from scratch: Adamax, 200 epochs, cosine from 2e-3 to 5e-5.

To fine-tune from ImageNet weights as the paper does: `--config.model.init=FILE
--config.num_epochs=25 --config.schedule.name=constant --config.schedule.learning_rate=5e-4
--config.dataset.image_size=64`.
"""

from ml_collections import ConfigDict

from gini_jax.config import default_config


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    config = default_config(objective)
    config.name = "cifar100_cvt13"
    config.num_epochs = 200
    config.batch_size = 200
    config.dataset.name = "cifar100"
    config.dataset.num_classes = 100
    config.dataset.val_size = 4000  # 46,000 / 4,000 / 10,000
    config.augment.crop_padding = 4
    config.augment.flip = True
    config.model = ConfigDict()  # a CvT has neither stem nor width
    config.model.name = "cvt13"
    config.model.init = ""  # PyTorch weights, .safetensors or .pth
    config.model.drop_path = 0.1
    config.model.activation = "quick_gelu"  # as the authors' code; gelu for Hugging Face's weights
    config.model.dropout = 0.0
    config.model.dtype = "float32"
    config.model.remat = False
    config.loss.layers = ("stage3",)
    config.loss.start_epoch = 10
    config.optimizer.name = "adamax"
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 2e-3
    config.schedule.final = 5e-5
    return config
