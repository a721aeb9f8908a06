"""A run in its workdir: the loop over epochs, what it saves, and how it goes on or ends."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from clu import parameter_overview
from jax.experimental import multihost_utils
from tqdm import tqdm

from gini_jax.checkpoint import Checkpoints
from gini_jax.config import model_settings
from gini_jax.data import Dataset
from gini_jax.diagnose import first_nan
from gini_jax.errors import RunError
from gini_jax.evaluate import Evaluator
from gini_jax.feed import DeviceFeed, StreamFeed, choose_feed
from gini_jax.interrupt import Interrupts
from gini_jax.models import from_torch, read_torch_file
from gini_jax.parallel import num_devices, replicate
from gini_jax.report import draw_curves, draw_impurity, summary_text
from gini_jax.step import Experiment, create_step, init_state
from gini_jax.workdir import add_line, keep_lines_until, write


class Run:
    """A run: its state, its place in the schedule, and the files that it writes.

    `progress` is what a checkpoint holds beside the state: epochs done, the metrics of the epoch
    that is under way, the best epoch so far, seconds and images.
    """

    def __init__(
        self,
        experiment: Experiment,
        dataset: Dataset,
        workdir: Path,
        devices: Sequence[jax.Device] | None,
    ):
        self.experiment, self.dataset, self.workdir = experiment, dataset, workdir
        self.config, self.devices = experiment.config, devices
        self.writes = jax.process_index() == 0
        self.evaluator = Evaluator(
            experiment.model,
            tuple(self.config.loss.layers),
            dataset,
            self.config.eval_batch_size,
            devices,
        )
        self.checkpoints = Checkpoints(workdir / "checkpoints")
        self.state = init_state(experiment)
        if self.config.model.init:
            weights = from_torch(
                self.config.model.name,
                read_torch_file(self.config.model.init),
                dataset.num_classes,
                **model_settings(self.config),
            )
            self.state = self.state.replace(**weights)  # type: ignore[attr-defined]
        self.initial_variables = jax.device_get(self.state.variables)
        self.progress: dict[str, Any] = {
            "epochs": 0,
            "epoch_sums": {},
            "best_step": 0,
            "best_epoch": 0,
            "val_accuracy": -1.0,
            "train_seconds": 0.0,
            "images": 0,
        }
        self._saved_at = time.monotonic()
        self._compiled: dict[int, Any] = {}  # by steps in a call
        train = dataset.splits["train"]
        self.feed_name = choose_feed(self.config.dataset.feed, train, devices)
        self._feed: DeviceFeed | StreamFeed | None = None

    @property
    def num_parameters(self) -> int:
        """Parameters of the model."""
        return int(parameter_overview.count_parameters(self.initial_variables["params"]))

    def restore_newest(self) -> None:
        """Goes on from the newest checkpoint that can be read, if there is one.

        Raises:
            RunError: there are checkpoints, and none can be read.
        """
        restored = self.checkpoints.restore_newest(self.state)
        if restored is None:
            return
        self.state, self.progress = restored
        print(f"resuming {self.workdir} at step {int(self.state.step)}")

    def fit(self) -> None:
        """Trains to the last epoch, evaluating, logging and saving on the way.

        Raises:
            RunError: the loss is not finite, or a checkpoint could not be written.
            SystemExit: after SIGTERM or SIGINT, with all saved.
        """
        self.restore_newest()
        config = self.config
        metrics_path = self.workdir / "metrics.jsonl"
        if self.writes:
            keep_lines_until(metrics_path, self.progress["epochs"] * self.steps)
        if self.progress["epochs"] == config.num_epochs:
            return
        writer = _tensorboard_writer(self.workdir) if self.writes else None
        done = int(self.state.step) * config.batch_size
        self.state = replicate(self.state, self.devices)
        if self.writes:
            print(
                f"{config.name}:{config.objective} seed {config.seed}, {self.num_parameters:,} "
                f"parameters, {num_devices(self.devices)} x {jax.devices()[0].device_kind}, "
                f"{config.num_epochs} epochs of {self.steps} steps of {config.batch_size} images, "
                + ("held on each device" if self.feed_name == "device" else "streamed by the host")
            )
        bar = tqdm(
            total=config.num_epochs * self.steps * config.batch_size,
            initial=done,
            unit=" images",
            unit_scale=True,
            mininterval=1,
            disable=not self.writes,
        )
        closing = contextlib.nullcontext() if writer is None else contextlib.closing(writer)
        with bar, closing, Interrupts() as interrupts:
            while (epoch := self.progress["epochs"]) < config.num_epochs:
                means = self._train_epoch(epoch, bar, interrupts)
                line: dict[str, Any] = {"epoch": epoch + 1, "step": (epoch + 1) * self.steps}
                line |= means
                self.progress |= {"epochs": epoch + 1, "epoch_sums": {}}
                last = epoch + 1 == config.num_epochs
                if last or (epoch + 1) % config.eval_every_epochs == 0:
                    line |= self._validate(epoch + 1)
                    if self.writes:
                        add_line(metrics_path, line)
                    if writer is not None:
                        writer.write_scalars(line["step"], line)
                status = interrupts.status(line["step"])
                improved = self.progress["best_step"] == line["step"]
                due = (epoch + 1) % config.checkpoint_every_epochs == 0
                if last or improved or due or status:
                    self._save(line["step"])
                if status:
                    self._stop(line["step"], status, bar)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.experiment.steps_per_epoch

    def _save(self, step: int) -> None:
        self.checkpoints.save(step, self.state, self.progress)
        self._saved_at = time.monotonic()

    def _train_epoch(self, epoch: int, bar: tqdm, interrupts: Interrupts) -> dict[str, float]:
        """The rest of an epoch; the means of its metrics over all of its steps."""
        config = self.config
        done = int(jax.device_get(self.state.step)) - epoch * self.steps
        profile_until, calls = 0, 0
        start, pending = time.perf_counter(), None
        with contextlib.ExitStack() as stack:
            while done < self.steps:
                if config.profile and epoch == 0 and calls == 1:  # the first one compiles
                    stack.enter_context(jax.profiler.trace(str(self.workdir / "profile")))
                    profile_until = done + 10
                if 0 < profile_until <= done:
                    stack.close()
                count = min(config.steps_per_call, self.steps - done)
                metrics = self.advance(epoch * self.steps + done, count)
                # The metrics of a call are fetched while the next one runs.
                self._add(pending, epoch, bar)
                pending, done, calls = metrics, done + count, calls + 1
                if done == self.steps:
                    break  # the end of the epoch is saved with its evaluation
                step = epoch * self.steps + done
                status = interrupts.status(step)
                if status or self._save_is_due():
                    self._add(pending, epoch, bar)
                    pending = None
                    self.progress["train_seconds"] += time.perf_counter() - start
                    start = time.perf_counter()
                    self._save(step)
                if status:
                    self._stop(step, status, bar)
            self._add(pending, epoch, bar)
        self.progress["train_seconds"] += time.perf_counter() - start
        means = {
            f"train_{name}": value / self.steps
            for name, value in self.progress["epoch_sums"].items()
        }
        means["learning_rate"] = float(self.experiment.schedule((epoch + 1) * self.steps - 1))
        return means

    def _stop(self, step: int, status: int, bar: tqdm) -> NoReturn:
        self.checkpoints.close()
        bar.close()
        print(f"stopped after step {step}, saved; the same command again goes on")
        sys.exit(status)

    def _save_is_due(self) -> bool:
        if not self.config.checkpoint_every_minutes:
            return False
        minutes = (time.monotonic() - self._saved_at) / 60
        due = np.array(minutes >= self.config.checkpoint_every_minutes)
        # Clocks differ; all processes follow that of process 0.
        return bool(multihost_utils.broadcast_one_to_all(due))

    def advance(self, step: int, count: int) -> dict[str, jax.Array]:
        """Takes the state, which is on the devices and at `step`, `count` steps on.

        Returns:
            Their metrics, `[count]` each.
        """
        if count not in self._compiled:
            self._compiled[count] = create_step(
                self.experiment, self.devices, count, self.feed_name
            )
        if self._feed is None:
            feed = DeviceFeed if self.feed_name == "device" else StreamFeed
            self._feed = feed(self.dataset.splits["train"], self.config, self.devices)
        arguments = self._feed.arguments(step, count)
        self.state, metrics = self._compiled[count](self.state, *arguments)
        return metrics

    def _add(self, metrics: Any, epoch: int, bar: tqdm) -> None:
        if metrics is None:
            return
        values = {name: np.asarray(value) for name, value in jax.device_get(metrics).items()}
        sums = self.progress["epoch_sums"]
        for i in range(len(values["loss"])):
            one = {name: float(value[i]) for name, value in values.items()}
            self.progress["images"] += self.config.batch_size
            if not math.isfinite(one["loss"]) or not math.isfinite(one["gradient_norm"]):
                raise self._not_finite(one)
            for name, value in one.items():
                sums[name] = sums.get(name, 0.0) + value
        shown = "  ".join(
            f"{name} {value:.3f}" for name, value in one.items() if "norm" not in name
        )
        bar.set_postfix_str(f"epoch {epoch + 1}  {shown}", refresh=False)
        bar.update(self.config.batch_size * len(values["loss"]))

    def _not_finite(self, metrics: dict[str, float]) -> RunError:
        step = self.progress["images"] // self.config.batch_size
        terms = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
        text = (
            f"the loss is not finite at step {step}: {terms}, learning rate "
            f"{float(self.experiment.schedule(step - 1)):g}.\n"
        )
        self.checkpoints.wait()
        kept = self.checkpoints.steps()
        text += f"Checkpoints of steps {kept} are kept. " if kept else "No checkpoint was written. "
        if self.config.debug_nans:
            return RunError(text + first_nan(self, step))
        return RunError(
            text + "Lower the learning rate or the terms' weights, or let them start later; "
            "--config.debug_nans=True names the first module with a NaN."
        )

    def _validate(self, epoch: int) -> dict[str, float]:
        split = self.dataset.splits["val"]
        values: dict[str, float] = {}
        if len(split.labels):
            values, _ = self.evaluator(self.state.variables, split)
        accuracy = values.get("accuracy", -1.0)
        # Without a validation split every epoch counts as the best, so the last one is tested.
        if accuracy > self.progress["val_accuracy"] or not values:
            self.progress |= {
                "best_epoch": epoch,
                "best_step": epoch * self.steps,
                "val_accuracy": accuracy,
            }
        seconds = self.progress["train_seconds"]
        return {f"val_{name}": value for name, value in values.items()} | {
            "train_seconds": seconds,
            "images_per_second": self.progress["images"] / seconds,
        }

    def finish(self) -> dict[str, Any]:
        """Tests the best checkpoint, writes result.json, draws and prints the summary."""
        config, progress = self.config, self.progress
        self.checkpoints.wait()
        try:
            best, _ = self.checkpoints.restore(progress["best_step"], self.state)
        except Exception as error:
            raise RunError(
                f"the best checkpoint, of step {progress['best_step']}, cannot be read "
                f"({str(error).splitlines()[0][:200]}); put it back from a copy, or delete "
                f"{self.workdir} and train again"
            ) from error
        self.checkpoints.close()
        test = self.dataset.splits["test"]
        values, after = self.evaluator(replicate(best.variables, self.devices), test)
        initial = replicate(self.initial_variables, self.devices)
        _, before = self.evaluator(initial, test)
        result = {
            "config_name": config.name,
            "objective": config.objective,
            "seed": config.seed,
            "epochs": config.num_epochs,
            "steps": config.num_epochs * self.steps,
            "best_epoch": progress["best_epoch"],
            "val_accuracy": progress["val_accuracy"] if progress["val_accuracy"] >= 0 else None,
            "test_accuracy": values["accuracy"],
            "test_top5": values["top5"],
            "test_loss": values["loss"],
            "feature_gini": values["gini"],
            "feature_kl": values["kl"],
            "train_seconds": progress["train_seconds"],
            "images_per_second": progress["images"] / max(progress["train_seconds"], 1e-9),
            "num_parameters": self.num_parameters,
            "device": f"{num_devices(self.devices)} x {jax.devices()[0].device_kind}",
            "jax_version": jax.__version__,
        }
        if self.writes:
            write(self.workdir / "result.json", json.dumps(result, indent=2) + "\n")
            draw_curves(self.workdir / "metrics.jsonl", self.workdir / "curves.png")
            draw_impurity(before, after, self.workdir / "impurity.png")
            print(summary_text(result, self.workdir))
        return result


def _tensorboard_writer(workdir: Path) -> Any:
    try:
        from clu import metric_writers

        return metric_writers.SummaryWriter(str(workdir))
    except ImportError as error:
        print(
            f"no TensorBoard files ({error}); pip install tensorflow-cpu tensorboard to have them"
        )
        return None
