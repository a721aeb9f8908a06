"""A run: built from a config, trained, resumed, tested, written and drawn."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from clu import parameter_overview
from tqdm import tqdm

from gini_jax.checkpoint import Checkpoints
from gini_jax.config import check_config, check_layers, check_workdir, config_json
from gini_jax.data import Dataset, epoch_order, load_dataset
from gini_jax.errors import InputError
from gini_jax.evaluate import Evaluator
from gini_jax.models import create_model, from_torch, read_torch_file
from gini_jax.optim import create_optimizer, create_schedule
from gini_jax.parallel import AXIS, num_devices, replicate, shard
from gini_jax.report import draw_curves, draw_impurity, summary_text
from gini_jax.step import Experiment, create_step, feature_shapes, init_state, resident


def build_experiment(
    config: Any, dataset: Dataset, devices: Sequence[jax.Device] | None = None
) -> Experiment:
    """Model, optimiser and schedule of a config for a data set.

    Raises:
        InputError: a value breaks a rule; see `check_config`.
    """
    check_config(config, num_devices(devices))
    train_size = dataset.splits["train"].labels.shape[0]
    steps_per_epoch = train_size // config.batch_size
    if steps_per_epoch == 0:
        raise InputError(
            f"batch_size={config.batch_size} exceeds the {train_size} training images; set a "
            "smaller --config.batch_size"
        )
    model = create_model_of(config, dataset.num_classes)
    schedule = create_schedule(config.schedule, steps_per_epoch, config.num_epochs)
    optimizer = create_optimizer(config.optimizer, schedule)
    return Experiment(
        config.copy_and_resolve_references(),
        model,
        optimizer,
        schedule,
        dataset.num_classes,
        dataset.image_size,
        dataset.splits["train"].images.shape[1:],
        steps_per_epoch,
    )


def check_before_data(config: Any, devices: Sequence[jax.Device] | None = None) -> None:
    """Refuses a config that no data could save, before a data set is opened.

    Raises:
        InputError: a value breaks a rule, or a name is unknown.
    """
    check_config(config, num_devices(devices))
    model = create_model_of(config, num_classes=2)
    check_layers(config.loss.layers, feature_shapes(model, 32))
    schedule = create_schedule(config.schedule, steps_per_epoch=1000, num_epochs=config.num_epochs)
    create_optimizer(config.optimizer, schedule)


def create_model_of(config: Any, num_classes: int, axis_name: str | None = AXIS) -> nn.Module:
    """The network of a config; batch norm is synchronised over `axis_name`."""
    return create_model(config.model.name, num_classes, axis_name=axis_name, **_overrides(config))


def _overrides(config: Any) -> dict[str, Any]:
    """The attributes of the network that the config sets."""
    return {key: value for key, value in config.model.items() if key not in ("name", "init")}


def train(
    config: Any, workdir: Path, devices: Sequence[jax.Device] | None = None
) -> dict[str, Any]:
    """Trains, or resumes, a run; tests its best checkpoint; writes and draws the results.

    Args:
        config: the settings; see `gini_jax.config`.
        workdir: the run's folder; one that holds a run of the same config is resumed.
        devices: to train on; all by default.

    Returns:
        What `result.json` holds.

    Raises:
        InputError: bad input, before any compilation.
    """
    check_before_data(config, devices)
    check_workdir(workdir, config)
    dataset = load_dataset(config.dataset)
    experiment = build_experiment(config, dataset, devices)
    (workdir / "config.json").write_text(config_json(config))
    run = Run(experiment, dataset, workdir, devices)
    run.fit()
    return run.finish()


def evaluate(
    config: Any, workdir: Path, devices: Sequence[jax.Device] | None = None
) -> dict[str, Any]:
    """Tests the best checkpoint of a workdir again.

    Returns:
        What `result.json` holds.

    Raises:
        InputError: bad input, or the workdir holds no checkpoint.
    """
    check_before_data(config, devices)
    dataset = load_dataset(config.dataset)
    run = Run(build_experiment(config, dataset, devices), dataset, workdir, devices)
    if run.checkpoints.latest_step() is None:
        raise InputError(f"workdir {str(workdir)!r} holds no checkpoint; train it first")
    run.restore_latest()
    return run.finish()


class Run:
    """A run in a workdir: its state, its place in the schedule, and the files that it writes."""

    def __init__(
        self,
        experiment: Experiment,
        dataset: Dataset,
        workdir: Path,
        devices: Sequence[jax.Device] | None,
    ):
        self.experiment, self.dataset, self.workdir = experiment, dataset, workdir
        self.config, self.devices = experiment.config, devices
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
                **_overrides(self.config),
            )
            self.state = self.state.replace(**weights)  # type: ignore[attr-defined]
        self.initial_variables = jax.device_get(self.state.variables)
        self.progress: dict[str, Any] = {
            "best_step": 0,
            "best_epoch": 0,
            "val_accuracy": -1.0,
            "train_seconds": 0.0,
            "images": 0,
        }

    def restore_latest(self) -> None:
        """Goes on from the newest checkpoint, if there is one."""
        step = self.checkpoints.latest_step()
        if step is not None:
            self.state, self.progress = self.checkpoints.restore(step, self.state)
            print(f"resuming {self.workdir} at step {step}")

    def fit(self) -> None:
        """Trains to the last epoch, evaluating, logging and saving on the way."""
        self.restore_latest()
        config, steps = self.config, self.experiment.steps_per_epoch
        first_epoch = int(self.state.step) // steps
        metrics_path = self.workdir / "metrics.jsonl"
        _keep_lines_until(metrics_path, int(self.state.step))
        if first_epoch == config.num_epochs:
            return
        writer = _tensorboard_writer(self.workdir)
        self.state = replicate(self.state, self.devices)
        data = replicate(resident(self.dataset.splits["train"]), self.devices)
        step = create_step(self.experiment, self.devices)
        print(
            f"{config.name}:{config.objective} seed {config.seed}, {self.num_parameters:,} "
            f"parameters, {num_devices(self.devices)} x {jax.devices()[0].device_kind}, "
            f"{config.num_epochs} epochs of {steps} steps of {config.batch_size} images"
        )
        bar = tqdm(
            total=config.num_epochs * steps * config.batch_size,
            initial=first_epoch * steps * config.batch_size,
            unit=" images",
            unit_scale=True,
            mininterval=1,
        )
        with bar:
            for epoch in range(first_epoch, config.num_epochs):
                means = self._train_epoch(step, data, epoch, bar)
                line: dict[str, Any] = {"epoch": epoch + 1, "step": (epoch + 1) * steps, **means}
                last = epoch + 1 == config.num_epochs
                if last or (epoch + 1) % config.eval_every_epochs == 0:
                    line |= self._validate(epoch + 1)
                    with metrics_path.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    if writer is not None:
                        writer.write_scalars(line["step"], line)
                improved = self.progress["best_step"] == line["step"]
                if last or improved or (epoch + 1) % config.checkpoint_every_epochs == 0:
                    self.checkpoints.save(line["step"], self.state, self.progress)
        if writer is not None:
            writer.close()

    def _train_epoch(self, step, data, epoch: int, bar: tqdm) -> dict[str, float]:
        config, devices = self.config, num_devices(self.devices)
        order = epoch_order(
            config.seed, epoch, len(self.dataset.splits["train"].labels), config.batch_size
        )
        order = _order_by_device(order, devices)
        sums: dict[str, float] = {}
        start, pending = time.perf_counter(), None
        for _ in range(self.experiment.steps_per_epoch):
            self.state, metrics = step(self.state, data, order)
            # Step k's metrics are fetched while step k + 1 runs.
            self._add(sums, pending, epoch, bar)
            pending = metrics
        self._add(sums, pending, epoch, bar)
        self.progress["train_seconds"] += time.perf_counter() - start
        self.progress["images"] += self.experiment.steps_per_epoch * config.batch_size
        means = {
            f"train_{name}": value / self.experiment.steps_per_epoch for name, value in sums.items()
        }
        means["learning_rate"] = float(self.experiment.schedule(int(self.state.step) - 1))
        return means

    def _add(self, sums: dict[str, float], metrics: Any, epoch: int, bar: tqdm) -> None:
        if metrics is None:
            return
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        bar.set_postfix_str(f"epoch {epoch + 1}  {shown}", refresh=False)
        bar.update(self.config.batch_size)

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
                "best_step": epoch * self.experiment.steps_per_epoch,
                "val_accuracy": accuracy,
            }
        seconds = self.progress["train_seconds"]
        return {f"val_{name}": value for name, value in values.items()} | {
            "train_seconds": seconds,
            "images_per_second": self.progress["images"] / seconds,
        }

    @property
    def num_parameters(self) -> int:
        """Parameters of the model."""
        return int(parameter_overview.count_parameters(self.initial_variables["params"]))

    def finish(self) -> dict[str, Any]:
        """Tests the best checkpoint, writes result.json, draws and prints the summary."""
        config, progress = self.config, self.progress
        best, _ = self.checkpoints.restore(progress["best_step"], self.state)
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
            "steps": config.num_epochs * self.experiment.steps_per_epoch,
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
        if jax.process_index() == 0:
            (self.workdir / "result.json").write_text(json.dumps(result, indent=2) + "\n")
            draw_curves(self.workdir / "metrics.jsonl", self.workdir / "curves.png")
            draw_impurity(before, after, self.workdir / "impurity.png")
            print(summary_text(result, self.workdir))
        return result


def _order_by_device(order: np.ndarray, devices: int) -> np.ndarray:
    """`[steps, batch]` to this process's `[local devices, steps, batch / devices]`."""
    return np.ascontiguousarray(np.swapaxes(shard(order.T, devices), 1, 2))


def _keep_lines_until(path: Path, step: int) -> None:
    """Drops the lines of metrics.jsonl that lie after the checkpoint that is resumed."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in lines))


def _tensorboard_writer(workdir: Path) -> Any:
    try:
        from clu import metric_writers

        return metric_writers.SummaryWriter(str(workdir))
    except ImportError as error:
        print(
            f"no TensorBoard files ({error}); pip install tensorflow-cpu tensorboard to have them"
        )
        return None
