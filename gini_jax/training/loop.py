"""The loop over epochs: trains, validates, logs, saves, resumes, and stops on a signal."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from gini_jax.data.sampling import calls_of_epoch
from gini_jax.data.source import Dataset
from gini_jax.devices import replicate
from gini_jax.errors import RunError, Stopped
from gini_jax.evals import Extractor, validation_metrics
from gini_jax.storage import local_folder
from gini_jax.training.checkpoints import Checkpoints
from gini_jax.training.initial import start_state
from gini_jax.training.interrupt import Interrupts
from gini_jax.training.loggers import Logger, create_loggers
from gini_jax.training.nan import first_nan
from gini_jax.training.progress import Progress, ProgressBar, start_text
from gini_jax.training.state import Experiment, TrainState, init_state, not_finite
from gini_jax.training.stepper import Stepper
from gini_jax.training.workdir import keep_lines_until


def fit(
    experiment: Experiment,
    dataset: Dataset,
    workdir: Path,
    devices: Sequence[jax.Device] | None = None,
    after_epoch: Callable[[], object] = lambda: None,
) -> Progress:
    """Trains up to the last epoch, starting from the workdir's newest checkpoint if there is one.

    Args:
        experiment: the fixed parts of the run.
        dataset: the data.
        workdir: where metrics and checkpoints go.
        devices: to train on; all by default.
        after_epoch: called in the process that writes, after each epoch is logged.

    Returns:
        The run's progress at its end.

    Raises:
        RunError: the loss is not finite, or a checkpoint could not be written.
        Stopped: after SIGTERM or SIGINT, with everything saved.
    """
    config = experiment.config
    writes = jax.process_index() == 0
    checkpoints = Checkpoints(workdir / "checkpoints")
    state, progress = resumed_or_new(experiment, checkpoints)
    if writes:
        announce_resume(int(state.step), progress, workdir, config)
        keep_lines_until(workdir / "metrics.jsonl", int(state.step))
    if progress.is_last(config):
        checkpoints.close()
        return progress
    stepper = Stepper(experiment, dataset, devices)
    if writes:
        print(start_text(experiment, state, stepper.feed_name, devices))
    bar = ProgressBar(experiment, int(state.step), show=writes)
    saver = Saver(checkpoints, config.checkpoint_every_minutes)
    state = replicate(state, devices)
    with contextlib.ExitStack() as stack:
        stack.callback(bar.close)
        loggers = create_loggers(workdir, config) if writes else []
        for logger in loggers:
            stack.callback(logger.close)
        interrupts = stack.enter_context(Interrupts())
        profile = stack.enter_context(Profile(workdir / "profile", on=config.profile))
        validate, after = validator(experiment, dataset, devices), after_epoch
        hooks = Hooks(stepper, bar, saver, interrupts, profile, validate, loggers, after)
        for epoch in range(progress.epochs, config.num_epochs):
            state = train_epoch(epoch, state, progress, hooks)
            line = progress.end_epoch(experiment)
            if epoch + 1 == config.num_epochs or (epoch + 1) % config.eval_every_epochs == 0:
                line |= progress.add_validation(hooks.validate(state), line["step"])
            log_epoch(line, hooks)
            bar.end_epoch(line, progress)
            save_or_stop(state, progress, hooks)
            if progress.is_last(config):
                break
    checkpoints.close()
    return progress


class Hooks(NamedTuple):
    """The objects that accompany the steps of a run."""

    stepper: Stepper
    bar: ProgressBar
    saver: "Saver"
    interrupts: Interrupts
    profile: "Profile"
    validate: Callable[[TrainState], dict[str, float]]
    loggers: Sequence[Logger]  # empty in processes that do not write
    after_epoch: Callable[[], object]


def announce_resume(step: int, progress: Progress, workdir: Path, config: ConfigDict) -> None:
    """Says where a run resumes, and whether it has already stopped early."""
    if step:
        print(f"resuming {workdir} at step {step}")
    if step and progress.stopped_early(config):
        print("it stopped early; to train on, raise --config.early_stopping_epochs")


def log_epoch(line: dict[str, Any], hooks: Hooks) -> None:
    """Logs an epoch, with its validation if there was one."""
    for logger in hooks.loggers:
        logger.write(line)
    if hooks.loggers:
        hooks.after_epoch()


def save_or_stop(state: TrainState, progress: Progress, hooks: Hooks) -> None:
    """Ends an epoch: saves a checkpoint if one is due, and stops the run after a signal."""
    experiment = hooks.stepper.experiment
    step = progress.epochs * experiment.steps_per_epoch
    status = hooks.interrupts.status(step)
    due = progress.epochs % experiment.config.checkpoint_every_epochs == 0
    if progress.is_last(experiment.config) or due or status or progress.best_step == step:
        hooks.saver.save(step, state, progress)
    if status:
        stop(step, status, hooks)
    if hooks.loggers and progress.stopped_early(experiment.config):
        print(f"stopped early: epoch {progress.best_epoch} is the best of {progress.epochs}")


def train_epoch(epoch: int, state: TrainState, progress: Progress, hooks: Hooks) -> TrainState:
    """Trains a state, which is on the devices, through the rest of an epoch.

    Raises:
        RunError: the loss is not finite, or a checkpoint could not be written.
        Stopped: after a signal, with everything saved.
    """
    experiment = hooks.stepper.experiment
    end = (epoch + 1) * experiment.steps_per_epoch
    pending, start = None, time.perf_counter()
    first, steps_per_call = int(jax.device_get(state.step)), experiment.config.steps_per_call
    for step, count in calls_of_epoch(first, experiment.steps_per_epoch, steps_per_call):
        hooks.profile.before_call(step)
        state, metrics = hooks.stepper(state, step, count)
        # The metrics of a call are fetched while the next one runs.
        drain_metrics(pending, progress, hooks)
        pending, step = metrics, step + count
        if step == end:
            break  # the end of an epoch is saved together with its validation
        status = hooks.interrupts.status(step)
        if status or hooks.saver.is_due():
            drain_metrics(pending, progress, hooks)
            pending, start = None, progress.add_time(start)
            hooks.saver.save(step, state, progress)
        if status:
            stop(step, status, hooks)
    drain_metrics(pending, progress, hooks)
    progress.add_time(start)
    return state


def resumed_or_new(experiment: Experiment, checkpoints: Checkpoints) -> tuple[TrainState, Progress]:
    """State and progress of the newest checkpoint that can be read, or those of a new run."""
    restored = checkpoints.restore_newest(lambda: init_state(experiment))
    if restored is None:
        return start_state(experiment), Progress()
    state, progress = restored
    return state, Progress(**progress)


def validator(
    experiment: Experiment, dataset: Dataset, devices: Sequence[jax.Device] | None
) -> Any:
    """A function from a state on the devices to validation metrics; {} if the split is empty."""
    config, split = experiment.config, dataset.splits["val"]
    extract = Extractor(experiment.model, config, dataset.image_size, devices)

    def validate(state: TrainState) -> dict[str, float]:
        if not len(split.labels):
            return {}
        return validation_metrics(extract(state.evaluated, split), dataset.num_classes)

    return validate


def drain_metrics(metrics: Any, progress: Progress, hooks: Hooks) -> None:
    """Fetches the metrics of a call and adds them to the epoch's.

    Raises:
        RunError: the loss or the gradient of one of the steps is not finite.
    """
    if metrics is None:
        return
    values = {name: np.asarray(value) for name, value in jax.device_get(metrics).items()}
    config = hooks.stepper.experiment.config
    for i in range(len(values["loss"])):
        one = {name: float(value[i]) for name, value in values.items()}
        progress.add_step(one, config.batch_size)
        if not math.isfinite(one["loss"]) or not math.isfinite(one["gradient_norm"]):
            raise _not_finite(one, progress, hooks.stepper, hooks.saver.checkpoints)
        log_step(one, progress, hooks)
    hooks.bar.update(one, progress, len(values["loss"]))


def log_step(metrics: dict[str, float], progress: Progress, hooks: Hooks) -> None:
    """Logs a step, if it is one of every `log_every_steps`; the last of an epoch is the epoch's."""
    experiment = hooks.stepper.experiment
    every, step = experiment.config.log_every_steps, progress.images // experiment.config.batch_size
    if every and step % every == 0 and step % experiment.steps_per_epoch:
        for logger in hooks.loggers:
            logger.write({"step": step, **{f"step_{name}": x for name, x in metrics.items()}})


def stop(step: int, status: int, hooks: Hooks) -> NoReturn:
    """Ends the run after a signal.

    Raises:
        Stopped: always.
    """
    hooks.saver.checkpoints.close()
    hooks.bar.close()
    raise Stopped(f"stopped after step {step}, saved; the same command resumes the run", status)


class Saver:
    """Writes checkpoints, and knows when the next one is due within an epoch."""

    def __init__(self, checkpoints: Checkpoints, every_minutes: float):
        self.checkpoints, self._every = checkpoints, every_minutes
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint within the epoch; the same for all processes."""
        if not self._every:
            return False
        due = np.array((time.monotonic() - self._saved_at) / 60 >= self._every)
        # Clocks differ, so all processes follow the clock of process 0.
        return bool(multihost_utils.broadcast_one_to_all(due))

    def save(self, step: int, state: TrainState, progress: Progress) -> None:
        """Starts writing a checkpoint.

        Raises:
            RunError: the weights are not finite, or an earlier checkpoint could not be written.
        """
        found = jax.device_get(not_finite((state.variables, state.average, state.terms.params)))
        if bad := [path for path, is_bad in found.items() if is_bad]:
            self.checkpoints.wait()
            raise RunError(
                f"after step {step} the weights are not finite ({len(bad)} arrays, such as "
                f"{bad[0]}); {_kept(self.checkpoints.steps())}"
            )
        self.checkpoints.save(step, state, dataclasses.asdict(progress))
        self._saved_at = time.monotonic()


class Profile(contextlib.ExitStack):
    """Traces ten steps, starting with the second call, because the first one compiles."""

    def __init__(self, folder: Path, on: bool):
        super().__init__()
        self._folder, self._until = folder, 0
        self._first: int | None = -1 if on else None

    def before_call(self, step: int) -> None:
        """Starts or stops the trace when it is time."""
        if self._first is None:
            return
        if self._first < 0:
            self._first = step
        elif not self._until:
            folder = self.enter_context(local_folder(self._folder))
            self.enter_context(jax.profiler.trace(str(folder)))
            self._until = step + 10
        elif step >= self._until:
            self.close()
            self._first = None


def _not_finite(
    metrics: dict[str, float], progress: Progress, stepper: Stepper, checkpoints: Checkpoints
) -> RunError:
    experiment = stepper.experiment
    step = progress.images // experiment.config.batch_size
    what = "loss" if not math.isfinite(metrics["loss"]) else "gradient"
    terms = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
    text = (
        f"the {what} is not finite at step {step}: {terms}, learning rate "
        f"{float(experiment.schedule(step - 1)):g}.\n"
    )
    checkpoints.wait()
    kept = _kept(checkpoints.steps())
    if experiment.config.debug_nans:
        state, _ = resumed_or_new(experiment, checkpoints)
        return RunError(f"{text}{first_nan(stepper, state, step)} {kept}")
    return RunError(f"{text}{kept} --config.debug_nans=True names the first module with a NaN.")


def _kept(steps: list[int]) -> str:
    """Which checkpoints there are, and what to do."""
    there = f"Checkpoints of steps {steps} are kept. " if steps else "No checkpoint was written. "
    again = "another --workdir" if steps else "the same workdir"
    return (
        f"{there}In {again}, lower the learning rate or the terms' weights, or let the terms start "
        "later."
    )
