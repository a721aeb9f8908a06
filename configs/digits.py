"""The default: a small ResNet on scikit-learn's 8x8 digits; about a minute on two CPU cores."""

from ml_collections import ConfigDict

from gini_jax.config import default_config, set_model


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    config = default_config(objective)
    config.name = "digits"
    config.num_epochs = 40
    config.batch_size = 64
    config.eval_batch_size = 200
    config.dataset.update(name="digits", num_classes=10)
    config.augment.crop_padding = 1
    config.loss.start_epoch = 5
    config.schedule.update(name="cosine", learning_rate=0.05, warmup_epochs=0.5)
    set_model(config, "resnet_digits")
    return config
