"""The digits' config with a network of two narrow stages, for runs that are tests."""

from ml_collections import ConfigDict

from configs import digits


def get_config(objective: str | None = None) -> ConfigDict:
    """The experiment; the argument after the colon is the objective."""
    config = digits.get_config(objective)
    config.name = "tiny"
    config.num_epochs = 6
    config.model.width = 8
    config.model.blocks = (1, 1)
    config.loss.start_epoch = 2
    config.loss.layers = ("stage2",)
    config.evals = ()
    config.report = False
    config.loggers = ("jsonl",)
    return config
