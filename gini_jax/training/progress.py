"""A run's progress, and the text that it prints at its start."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from gini_jax.devices import num_devices
from gini_jax.training.checks import notes_on
from gini_jax.training.state import Experiment, TrainState, why_not_measured


@dataclasses.dataclass
class Progress:
    """What a checkpoint holds besides the state.

    Attributes:
        epochs: epochs done.
        epoch_sums: sums of the metrics over the steps of the current epoch so far.
        best_step: step of the best checkpoint so far.
        best_epoch: epoch of that checkpoint.
        val_accuracy: validation accuracy of that checkpoint; -1 without a validation split.
        train_seconds: time spent in training, without evaluation.
        images: training images seen.
    """

    epochs: int = 0
    epoch_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    best_step: int = 0
    best_epoch: int = 0
    val_accuracy: float = -1.0
    train_seconds: float = 0.0
    images: int = 0

    @property
    def was_validated(self) -> bool:
        """Whether a validation has chosen the best epoch."""
        return self.val_accuracy >= 0

    def is_last(self, config: ConfigDict) -> bool:
        """Whether the run ends here: after `num_epochs`, or stopped early."""
        return self.epochs >= config.num_epochs or self.stopped_early(config)

    def stopped_early(self, config: ConfigDict) -> bool:
        """Whether validation has not improved for `early_stopping_epochs`."""
        return 0 < config.early_stopping_epochs <= self.epochs - self.best_epoch

    def add_step(self, metrics: dict[str, float], batch_size: int) -> None:
        """Adds the metrics of a step."""
        self.images += batch_size
        for name, value in metrics.items():
            self.epoch_sums[name] = self.epoch_sums.get(name, 0.0) + value

    def add_time(self, start: float) -> float:
        """Adds the seconds since `start` (of `time.perf_counter`); returns the current time."""
        now = time.perf_counter()
        self.train_seconds += now - start
        return now

    def end_epoch(self, experiment: Experiment) -> dict[str, Any]:
        """Ends an epoch; returns the means of its metrics over its steps."""
        steps = experiment.steps_per_epoch
        self.epochs += 1
        line: dict[str, Any] = {"epoch": self.epochs, "step": self.epochs * steps}
        line |= {f"train_{name}": value / steps for name, value in self.epoch_sums.items()}
        line["learning_rate"] = float(experiment.schedule(self.epochs * steps - 1))
        line["train_seconds"] = self.train_seconds
        line["images_per_second"] = self.images / self.train_seconds
        self.epoch_sums = {}
        return line

    def add_validation(self, values: dict[str, float], step: int) -> dict[str, Any]:
        """Records a validation, and whether it is the best so far; returns what to log."""
        accuracy = values.get("accuracy", -1.0)
        # Without a validation split, every epoch counts as the best so far, so the last is tested.
        if accuracy > self.val_accuracy or not values:
            self.best_epoch, self.best_step, self.val_accuracy = self.epochs, step, accuracy
        return {f"val_{name}": value for name, value in values.items()}


def num_parameters(params: Any) -> int:
    """How many numbers a tree of parameters holds."""
    return int(parameter_overview.count_parameters(params))


def start_text(
    experiment: Experiment,
    state: TrainState,
    feed_name: str,
    devices: Sequence[jax.Device] | None,
) -> str:
    """What a run prints before its first step."""
    config = experiment.config
    text = (
        f"{config.name}:{config.objective} seed {config.seed}, "
        f"{num_parameters(state.params):,} parameters, {num_devices(devices)} x "
        f"{jax.devices()[0].device_kind}, {config.num_epochs} epochs of "
        f"{experiment.steps_per_epoch} steps of {config.batch_size} images, "
        + (
            "the data held on each device"
            if feed_name == "device"
            else "the data streamed from the host"
        )
    )
    lines = [text]
    if experiment.objective.weights:
        balanced = config.dataset.sampler == "class_balanced"
        classes = config.batch_size / config.dataset.examples_per_class
        text = examples_per_class(
            config.batch_size, classes if balanced else experiment.num_classes
        )
        if not (experiment.automatic_batch and text.startswith("warning")):  # not a user choice
            lines.append(text)
        why_not = why_not_measured(experiment.model, experiment.image_size, config.loss.layers)
        if why_not:
            lines.append(f"note: train_gradient_ratio_TERM is not written: {why_not}")
    return "\n".join([*lines, *(f"note: {note}" for note in notes_on(config))])


def examples_per_class(batch_size: int, num_classes: float) -> str:
    """How many examples of a class the terms see at a time; a warning where they are too few.

    Examples:
        >>> examples_per_class(64, 10)
        'a batch holds 6.4 examples per class on average'
    """
    average = batch_size / num_classes
    text = f"a batch holds {average:.1f} examples per class on average"
    if average >= 2:
        return text
    return (
        f"warning: {text}; below 2, a batch lacks many classes or holds one example of them, and "
        f"the terms see single examples: set --config.batch_size={2 * num_classes:.0f} or more, or "
        "--config.dataset.sampler=class_balanced"
    )
