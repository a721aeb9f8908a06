"""Callbacks: what they write, when they save, and what ends a run."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from gini_jax.config.change import default_config
from gini_jax.errors import RunError, Stopped
from gini_jax.losses.balance import LARGEST_FACTOR
from gini_jax.losses.objective import Objective, ObjectiveState
from gini_jax.training.callbacks import Log, SaveOrStop, StopAtLimit, StopAtNaN
from gini_jax.training.progress import Progress


class Saved:
    """In the place of the checkpoints."""

    def __init__(self):
        self.saved = []

    def steps(self):
        return self.saved

    def save(self, step, state, progress):
        self.saved.append(step)

    def wait(self):
        pass


class Lines:
    def __init__(self):
        self.lines, self.closed = [], False

    def write(self, line):
        self.lines.append(line)

    def close(self):
        self.closed = True


def run_at(step, weights=0.0, objective="ce", **changes):
    """A run of 5 steps an epoch, as far as callbacks look at it."""
    config = default_config(objective)
    config.update(batch_size=4, num_epochs=3, **changes)
    terms = ObjectiveState({}, None)
    return SimpleNamespace(
        experiment=SimpleNamespace(
            config=config,
            steps_per_epoch=5,
            schedule=lambda step: 0.25,
            objective=Objective(config.loss.terms.to_dict()),
        ),
        step=step,
        steps_seen=step,
        progress=Progress(epochs=step // 5, val_accuracy=0.5, best_step=1),
        state=SimpleNamespace(variables={"w": np.array([weights])}, average=None, terms=terms),
        line={"epoch": step // 5, "step": step},
        settle=lambda: None,
    )


def test_a_loss_or_gradient_that_is_not_finite_ends_the_run_with_its_step():
    saved = Saved()
    saved.saved = [5]
    callback = StopAtNaN(saved)
    callback.on_step(run_at(7), {"loss": 1.0, "gradient_norm": 2.0})
    for metrics, what in (
        ({"loss": math.nan, "gradient_norm": 1.0}, "the loss is not finite at step 7"),
        ({"loss": 1.0, "gradient_norm": math.inf}, "the gradient is not finite at step 7"),
    ):
        with pytest.raises(RunError, match=rf"{what}.*learning rate 0\.25") as error:
            callback.on_step(run_at(7), metrics)
        assert "Checkpoints of steps [5] are kept" in str(error.value)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_held_weight_at_its_limit_ends_the_run(sign):
    run = run_at(3, objective="gini", **{})
    run.experiment.objective = Objective({"gini": sign * 0.5}, hold_gradient_ratios=True)
    limit = sign * 0.5 * LARGEST_FACTOR
    StopAtLimit().on_step(run, {"weight_gini": 0.9 * limit})
    with pytest.raises(RunError, match="the gradient of gini at stage4 is less than"):
        StopAtLimit().on_step(run, {"weight_gini": limit})


def test_lines_are_of_epochs_and_of_the_steps_within_them_that_are_due():
    logger = Lines()
    log = Log([logger])
    for step in range(1, 6):
        log.on_step(run_at(step, log_every_steps=2), {"loss": float(step)})
    log.after_epoch(run_at(5))
    log.close()
    assert logger.lines == [
        {"step": 2, "step_loss": 2.0},
        {"step": 4, "step_loss": 4.0},
        {"epoch": 1, "step": 5},
    ]
    assert logger.closed


def saver(status=0):
    saved = Saved()
    return saved, SaveOrStop(saved, SimpleNamespace(status=lambda: status))


def test_checkpoints_are_due_by_epoch_when_best_and_at_the_end():
    saved, callback = saver()
    for step, best in ((5, 5), (10, 5), (15, 5)):
        run = run_at(step, checkpoint_every_epochs=10)
        run.progress.best_step = best
        callback.after_epoch(run)
    assert saved.saved == [5, 15]  # the best, and the last
    callback.after_epoch(run_at(10, checkpoint_every_epochs=2))
    assert saved.saved == [5, 15, 10]


def test_a_signal_saves_and_stops_between_two_calls():
    saved, callback = saver(status=143)
    with pytest.raises(Stopped, match="stopped after step 7, saved") as stopped:
        callback.after_call(run_at(7))
    assert stopped.value.status == 143 and saved.saved == [7]


def test_weights_that_are_not_finite_are_never_saved():
    saved, callback = saver()
    with pytest.raises(RunError, match=r"after step 5 the weights are not finite \(1 arrays"):
        callback.after_epoch(run_at(5, weights=math.nan))
    assert saved.saved == []
