"""CvT-13 on Caltech-101, the split of TFDS: 30 training images a class, 102 classes.

Learning rate and epochs are ours to choose on the validation part of the training split. These are
starting values after common practice: no search has been run yet.
"""

from ml_collections import ConfigDict

from gini_jax.config import default_config


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    config = default_config(objective)
    config.name = "caltech101_cvt13"
    config.num_epochs = 200
    config.batch_size = 64
    config.eval_batch_size = 128
    config.dataset.name = "caltech101"
    config.dataset.num_classes = 102
    config.dataset.val_size = 306  # of the 3,060 training images
    config.dataset.image_size = 224
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
    config.schedule.warmup_epochs = 5.0
    return config
