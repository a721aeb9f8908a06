"""Callbacks of a training run: logging, validation, checkpoints, signals, profiling."""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from gini_jax.data.source import Dataset
from gini_jax.errors import RunError, Stopped
from gini_jax.evals import Extractor, validation_metrics
from gini_jax.losses.balance import LARGEST_FACTOR
from gini_jax.storage import local_folder
from gini_jax.training.checkpoints import Checkpoints
from gini_jax.training.initial import resumed_or_new
from gini_jax.training.interrupt import Interrupts
from gini_jax.training.loggers import Logger
from gini_jax.training.loop import Callback, TrainLoop
from gini_jax.training.nan import first_nan
from gini_jax.training.state import Experiment, not_finite


class Profiler(Callback):
    """Traces ten steps, starting with the second call, because the first one compiles."""

    def __init__(self, folder: Path):
        self._folder, self._calls, self._until = folder, 0, 0
        self._trace = contextlib.ExitStack()

    def before_call(self, run: TrainLoop) -> None:
        """Starts or stops the trace when it is time."""
        self._calls += 1
        if self._calls == 2:
            folder = self._trace.enter_context(local_folder(self._folder))
            self._trace.enter_context(jax.profiler.trace(str(folder)))
            self._until = run.step + 10
        elif self._calls > 2 and run.step >= self._until:
            self.close()

    def close(self) -> None:
        """Writes the trace."""
        self._trace.close()


class StopAtNaN(Callback):
    """Ends a run whose loss or gradient is not finite."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def on_step(self, run: TrainLoop, metrics: dict[str, float]) -> None:
        """Checks a step.

        Raises:
            RunError: its loss or its gradient is not finite.
        """
        bad = [name for name in ("loss", "gradient_norm") if not math.isfinite(metrics[name])]
        if not bad:
            return
        step, experiment = run.steps_seen, run.experiment
        what = "loss" if "loss" in bad else "gradient"
        terms = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
        text = (
            f"the {what} is not finite at step {step}: {terms}, learning rate "
            f"{float(experiment.schedule(step - 1)):g}.\n"
        )
        self._checkpoints.wait()
        kept = _kept(self._checkpoints.steps())
        if experiment.config.debug_nans:
            state, _ = resumed_or_new(experiment, self._checkpoints)
            raise RunError(f"{text}{first_nan(run.stepper, state, step)} {kept}")
        raise RunError(f"{text}{kept} --config.debug_nans=True names the first module with a NaN.")


class StopAtLimit(Callback):
    """Ends a run in which even the largest weight cannot hold a term's gradient ratio."""

    def on_step(self, run: TrainLoop, metrics: dict[str, float]) -> None:
        """Checks a step.

        Raises:
            RunError: a held weight is at the limit of `GradientNorms.factors`.
        """
        for name, ratio in run.experiment.objective.weights.items():
            weight = metrics.get(f"weight_{name}", 0.0)
            if abs(weight) >= 0.999 * LARGEST_FACTOR * abs(ratio):
                layers = ", ".join(run.experiment.config.loss.layers)
                raise RunError(
                    f"loss.hold_gradient_ratios: at step {run.steps_seen} the gradient of {name} "
                    f"at {layers} is less than {1 / LARGEST_FACTOR:g} of cross-entropy's, so no "
                    f"weight holds it at {ratio:g}. In another --workdir, leave the term out "
                    f"(--config.loss.terms.{name}=0), or use fixed weights: "
                    "--config.loss.hold_gradient_ratios=False"
                )


class Validate(Callback):
    """Validates every `eval_every_epochs` epochs, and after the last."""

    def __init__(
        self, experiment: Experiment, dataset: Dataset, devices: Sequence[jax.Device] | None
    ):
        self._dataset, size = dataset, dataset.image_size
        self._extract = Extractor(experiment.model, experiment.config, size, devices)

    def after_epoch(self, run: TrainLoop) -> None:
        """Adds validation metrics to the epoch's line, if there is a validation split."""
        config, epochs = run.experiment.config, run.progress.epochs
        if epochs < config.num_epochs and epochs % config.eval_every_epochs:
            return
        split, values = self._dataset.splits["val"], {}
        if len(split.labels):
            features = self._extract(run.state.evaluated, split)
            values = validation_metrics(features, self._dataset.num_classes)
        run.line |= run.progress.add_validation(values, run.step)


class Log(Callback):
    """Writes a line for each epoch, and one every `log_every_steps` steps within it."""

    def __init__(self, loggers: Sequence[Logger]):
        self._loggers = loggers

    def on_step(self, run: TrainLoop, metrics: dict[str, float]) -> None:
        """Writes a line for a step, except the last of an epoch, which the epoch's line covers."""
        every, step = run.experiment.config.log_every_steps, run.steps_seen
        if every and step % every == 0 and step % run.experiment.steps_per_epoch:
            line = {"step": step, **{f"step_{name}": x for name, x in metrics.items()}}
            for logger in self._loggers:
                logger.write(dict(line))

    def after_epoch(self, run: TrainLoop) -> None:
        """Writes an epoch, with its validation if there was one."""
        for logger in self._loggers:
            logger.write(dict(run.line))

    def close(self) -> None:
        """Closes the loggers."""
        with contextlib.ExitStack() as stack:
            for logger in self._loggers:
                stack.callback(logger.close)


class AfterEpoch(Callback):
    """Calls a function after each epoch."""

    def __init__(self, call: Callable[[], object]):
        self._call = call

    def after_epoch(self, run: TrainLoop) -> None:
        """Calls the function."""
        self._call()


class ProgressBar(Callback):
    """A progress bar on a terminal; elsewhere, one plain line per epoch.

    Args:
        experiment: the run.
        step: number of steps already done.
        show: whether this process prints anything.
    """

    def __init__(self, experiment: Experiment, step: int, show: bool):
        config = experiment.config
        self._batch_size, self._epochs, self._val = config.batch_size, config.num_epochs, ""
        bar = sys.stderr.isatty() or "ipykernel" in sys.modules  # a terminal or a notebook
        self._lines = show and not bar
        self._start, self._first = time.monotonic(), step // experiment.steps_per_epoch
        self._bar = tqdm(
            total=config.num_epochs * experiment.steps_per_epoch * config.batch_size,
            initial=step * config.batch_size,
            unit=" images",
            unit_scale=True,
            mininterval=1,
            disable=not show or self._lines,
        )

    def on_step(self, run: TrainLoop, metrics: dict[str, float]) -> None:
        """Shows a step."""
        if self._bar.disable:
            return
        shown = "  ".join(
            f"{name} {value:.3f}" for name, value in metrics.items() if "norm" not in name
        )
        text = f"epoch {run.progress.epochs + 1}  {shown}{self._val}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(self._batch_size)

    def after_epoch(self, run: TrainLoop) -> None:
        """Shows the validation, and the best one so far."""
        line, best = run.line, run.progress.val_accuracy
        if "val_accuracy" in line:
            self._val = f"  val {line['val_accuracy']:.4f} (best {best:.4f})"
        if not self._lines:
            return
        seconds = time.monotonic() - self._start
        left = seconds / max(line["epoch"] - self._first, 1) * (self._epochs - line["epoch"])
        terms = run.experiment.objective.weights and run.experiment.config.loss.start_epoch
        jump = "  (the terms act from here on)" if terms == line["epoch"] > 1 else ""
        print(
            f"epoch {line['epoch']}/{self._epochs}  loss {line['train_loss']:.4f}  accuracy "
            f"{line['train_accuracy']:.4f}{self._val}  {left / 60:.1f} min left{jump}",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


class SaveOrStop(Callback):
    """Saves a checkpoint when one is due, and stops the run after a signal."""

    def __init__(self, checkpoints: Checkpoints, interrupts: Interrupts):
        self._checkpoints, self._interrupts = checkpoints, interrupts
        self._saved_at = time.monotonic()

    def after_call(self, run: TrainLoop) -> None:
        """Saves within an epoch every `checkpoint_every_minutes`, and after a signal.

        Raises:
            RunError: as for `save`.
            Stopped: after a signal, with everything saved.
        """
        status = self._interrupts.status()
        if status or self._is_due(run.experiment.config.checkpoint_every_minutes):
            run.settle()
            self.save(run)
        self._stop_at(status, run.step)

    def after_epoch(self, run: TrainLoop) -> None:
        """Saves every `checkpoint_every_epochs`, at a new best, at the end, and after a signal.

        Raises:
            RunError: as for `save`.
            Stopped: after a signal, with everything saved.
        """
        progress, config = run.progress, run.experiment.config
        status = self._interrupts.status()
        due = progress.epochs % config.checkpoint_every_epochs == 0
        best = progress.was_validated and progress.best_step == run.step
        if progress.is_last(config) or due or status or best:
            self.save(run)
        self._stop_at(status, run.step)

    def save(self, run: TrainLoop) -> None:
        """Starts writing a checkpoint.

        Raises:
            RunError: the weights are not finite, or an earlier checkpoint could not be written.
        """
        state = run.state
        found = jax.device_get(not_finite((state.variables, state.average, state.terms.params)))
        if bad := [path for path, is_bad in found.items() if is_bad]:
            self._checkpoints.wait()
            raise RunError(
                f"after step {run.step} the weights are not finite ({len(bad)} arrays, such as "
                f"{bad[0]}); {_kept(self._checkpoints.steps())}"
            )
        progress = dataclasses.asdict(run.progress)
        if not run.progress.was_validated:  # the newest checkpoint counts as the best
            progress["best_step"] = run.step
        self._checkpoints.save(run.step, state, progress)
        self._saved_at = time.monotonic()

    def _is_due(self, every_minutes: float) -> bool:
        """Whether it is time for a checkpoint within the epoch; the same for all processes."""
        if not every_minutes:
            return False
        due = np.array((time.monotonic() - self._saved_at) / 60 >= every_minutes)
        # Clocks differ, so all processes follow the clock of process 0.
        return bool(multihost_utils.broadcast_one_to_all(due))

    def _stop_at(self, status: int, step: int) -> None:
        if status:
            self._checkpoints.wait()
            text = f"stopped after step {step}, saved; the same command resumes the run"
            raise Stopped(text, status)


def _kept(steps: list[int]) -> str:
    """Says which checkpoints are kept, and what the user can do."""
    there = f"Checkpoints of steps {steps} are kept. " if steps else "No checkpoint was written. "
    again = "another --workdir" if steps else "the same workdir"
    return (
        f"{there}In {again}, lower the learning rate or the terms' weights, or let the terms start "
        "later."
    )
