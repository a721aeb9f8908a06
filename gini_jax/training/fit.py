"""Trains a run in its workdir, from its newest checkpoint or from the start."""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import jax
from ml_collections import ConfigDict

from gini_jax.data.source import Dataset
from gini_jax.devices import replicate
from gini_jax.training.callbacks import (
    AfterEpoch,
    Log,
    Profiler,
    ProgressBar,
    SaveOrStop,
    StopAtLimit,
    StopAtNaN,
    Validate,
)
from gini_jax.training.checkpoints import Checkpoints
from gini_jax.training.frozen import as_seen
from gini_jax.training.initial import resumed_or_new
from gini_jax.training.interrupt import Interrupts
from gini_jax.training.loggers import create_loggers
from gini_jax.training.loop import Callback, TrainLoop
from gini_jax.training.progress import Progress, start_text
from gini_jax.training.state import Experiment
from gini_jax.training.stepper import Stepper
from gini_jax.training.workdir import keep_lines_until


def fit(
    experiment: Experiment,
    dataset: Dataset,
    workdir: Path,
    devices: Sequence[jax.Device] | None = None,
    after_epoch: Callable[[], object] = lambda: None,
    callbacks: Sequence[Callback] = (),
) -> Progress:
    """Trains up to the last epoch, starting from the workdir's newest checkpoint if there is one.

    Args:
        experiment: the fixed parts of the run.
        dataset: the data.
        workdir: where metrics and checkpoints go.
        devices: to train on; all by default.
        after_epoch: called in the process that writes, after each epoch is logged.
        callbacks: the user's, called last: what they see of an epoch is logged and saved.

    Returns:
        The run's progress at its end.

    Raises:
        RunError: the loss is not finite, or a checkpoint could not be written.
        Stopped: after SIGTERM or SIGINT, with everything saved.
    """
    config, writes = experiment.config, jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(closing(Checkpoints(workdir / "checkpoints")))
        state, progress = resumed_or_new(experiment, checkpoints)
        step = int(state.step)
        if writes:
            announce_resume(step, progress, workdir, config)
            keep_lines_until(workdir / "metrics.jsonl", step)
        if progress.is_last(config):
            return progress
        dataset = as_seen(experiment, dataset, state.variables, devices)
        stepper = Stepper(experiment, dataset, devices)
        if writes:
            print(start_text(experiment, state, stepper.feed_name, devices))
        interrupts = stack.enter_context(Interrupts())
        every: list[Callback] = [
            StopAtNaN(checkpoints),
            StopAtLimit(),
            Validate(experiment, dataset, devices),
            Log(create_loggers(workdir, config) if writes else []),
            AfterEpoch(after_epoch if writes else lambda: None),
            ProgressBar(experiment, step, show=writes),
            SaveOrStop(checkpoints, interrupts),
        ]
        if config.profile:
            every.append(Profiler(workdir / "profile"))
        every += callbacks
        for callback in every:
            stack.callback(callback.close)
        run = TrainLoop(stepper, replicate(state, devices), progress, step, every)
        del state  # frees its memory while the replicas train
        run.train()
    if writes and progress.stopped_early(config):
        print(f"stopped early: epoch {progress.best_epoch} is the best of {progress.epochs}")
    return progress


def announce_resume(step: int, progress: Progress, workdir: Path, config: ConfigDict) -> None:
    """Says where a run resumes, and whether it has already stopped early."""
    if step:
        print(f"resuming {workdir} at step {step}")
    if step and progress.stopped_early(config):
        print("it stopped early; to train on, raise --config.early_stopping_epochs")
