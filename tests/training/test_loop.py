"""The loop: which steps it makes, and when it calls its callbacks."""

from types import SimpleNamespace

import numpy as np
import pytest

from gini_jax.config.change import default_config
from gini_jax.training.loop import Callback, TrainLoop
from gini_jax.training.progress import Progress


class Watch(Callback):
    """Writes down what the loop calls, and with how many steps done and seen."""

    def __init__(self):
        self.calls = []

    def before_call(self, run):
        self.calls.append(("before", run.step, run.steps_seen))

    def on_step(self, run, metrics):
        self.calls.append(("step", metrics["loss"]))

    def after_call(self, run):
        self.calls.append(("after", run.step))

    def after_epoch(self, run):
        self.calls.append(("epoch", run.line["epoch"], run.line["train_loss"]))


class Steps:
    """A stepper whose state counts its steps, and whose loss is the number of the step."""

    def __init__(self, **changes):
        config = default_config("ce")
        config.update(batch_size=4, num_epochs=2, **changes)
        self.experiment = SimpleNamespace(
            config=config, steps_per_epoch=5, schedule=lambda step: 0.1 * (step + 1)
        )
        self.made = []

    def __call__(self, state, step, count):
        assert state == step  # the state has made the steps before
        self.made.append((step, count))
        return state + count, {"loss": np.arange(step, step + count, dtype=float)}


def loop_of(stepper, callback, step=0, progress=None):
    return TrainLoop(stepper, step, progress or Progress(), step, [callback])


def test_calls_of_several_steps_end_with_the_epoch_and_metrics_come_one_call_late():
    stepper, watch = Steps(steps_per_call=2), Watch()
    loop_of(stepper, watch).train()
    assert stepper.made == [(0, 2), (2, 2), (4, 1), (5, 2), (7, 2), (9, 1)]
    assert watch.calls[:13] == [
        ("before", 0, 0),
        ("after", 2),
        ("before", 2, 0),
        ("step", 0.0),
        ("step", 1.0),
        ("after", 4),
        ("before", 4, 2),
        ("step", 2.0),
        ("step", 3.0),
        ("step", 4.0),
        ("epoch", 1, 2.0),  # the mean of 0 to 4
        ("before", 5, 5),
        ("after", 7),
    ]
    assert watch.calls[-1] == ("epoch", 2, 7.0)


@pytest.mark.parametrize("step", [5, 7])
def test_a_resumed_run_makes_the_steps_that_are_left(step):
    stepper, watch = Steps(), Watch()
    progress = Progress(epochs=1, images=4 * step, epoch_sums={"loss": float(sum(range(5, step)))})
    loop_of(stepper, watch, step, progress).train()
    assert stepper.made == [(s, 1) for s in range(step, 10)]
    assert watch.calls[-1] == ("epoch", 2, 7.0)  # the mean of 5 to 9, those before included


def test_a_run_stops_early_after_the_epochs_without_a_better_validation():
    stepper = Steps(early_stopping_epochs=1)
    progress = Progress(best_epoch=0, val_accuracy=0.9)
    run = loop_of(stepper, Watch(), progress=progress)
    run.train()
    assert run.step == 5 and progress.epochs == 1


def test_settling_takes_in_what_was_started_once():
    stepper, watch = Steps(), Watch()
    run = loop_of(stepper, watch)
    run._call(0, 3)
    assert run.step == 3 and run.steps_seen == 0
    run.settle()
    run.settle()
    assert run.steps_seen == 3 and run.progress.epoch_sums == {"loss": 3.0}
    assert run.progress.train_seconds > 0
