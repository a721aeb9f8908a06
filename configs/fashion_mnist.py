"""A small ResNet on Fashion-MNIST: 28x28 grey images of clothes; minutes on a few CPU cores."""

from ml_collections import ConfigDict

from gini_jax.config import default_config, set_model


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    config = default_config(objective)
    config.name = "fashion_mnist"
    config.num_epochs = 20
    config.batch_size = 200
    config.dataset.update(name="fashion_mnist", num_classes=10, val_size=5000)
    config.augment.crop_padding = 2
    config.augment.flip = True
    config.loss.start_epoch = 3
    config.schedule.update(name="cosine", learning_rate=0.1, warmup_epochs=0.5)
    set_model(config, "resnet_digits")
    return config
