"""ResNet-18 on CIFAR-100, after the paper's authors' published settings."""

from ml_collections import ConfigDict

from gini_jax.config import default_config


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    config = default_config(objective)
    config.name = "cifar100_resnet18"
    config.num_epochs = 250
    config.batch_size = 200
    config.dataset.name = "cifar100"
    config.dataset.num_classes = 100
    config.dataset.val_size = 4000  # 46,000 / 4,000 / 10,000
    config.augment.crop_padding = 4
    config.augment.flip = True
    config.model.name = "resnet18"
    config.loss.layers = ("stage4",)
    config.loss.start_epoch = 10
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "step"
    config.schedule.learning_rate = 0.1
    config.schedule.boundaries = (60, 120, 160, 200)
    config.schedule.factor = 0.2
    return config
