"""ResNet-50 on Caltech-101, the split of TFDS: 30 training images a class, 102 classes.

Learning rate and epochs are ours to choose on the validation part of the training split. These are
starting values after common practice: no search has been run yet.
"""

from ml_collections import ConfigDict

from gini_jax.config import default_config


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    config = default_config(objective)
    config.name = "caltech101_resnet50"
    config.num_epochs = 200
    config.batch_size = 64
    config.eval_batch_size = 128
    config.dataset.name = "caltech101"
    config.dataset.num_classes = 102
    config.dataset.val_size = 306  # of the 3,060 training images
    config.dataset.image_size = 224
    config.augment.flip = True
    config.model.name = "resnet50"
    config.model.stem = "imagenet"
    config.model.dropout = 0.4
    config.loss.layers = ("stage4",)
    config.loss.start_epoch = 10
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.05
    config.schedule.warmup_epochs = 5.0
    return config
