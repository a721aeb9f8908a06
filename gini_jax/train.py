"""From a config to a run: what it is built of, checked before anything is, then trained."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from gini_jax.config import check_config, check_layers, model_settings
from gini_jax.data import Dataset, load_dataset
from gini_jax.errors import InputError, unknown_name
from gini_jax.feed import FEEDS
from gini_jax.models import create_model
from gini_jax.optim import create_optimizer, create_schedule
from gini_jax.parallel import AXIS, num_devices, wait_for_all
from gini_jax.policies import POLICIES
from gini_jax.run import Run
from gini_jax.step import Experiment, feature_shapes
from gini_jax.workdir import check_workdir, config_json, lock, write


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
        jax.jit(schedule),
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
    if config.dataset.feed not in FEEDS:
        raise unknown_name("dataset.feed", config.dataset.feed, FEEDS)
    if config.augment.policy and config.augment.policy not in POLICIES:
        raise unknown_name("augment.policy", config.augment.policy, POLICIES)
    model = create_model_of(config, num_classes=2)
    check_layers(config.loss.layers, feature_shapes(model, 32))
    schedule = create_schedule(config.schedule, steps_per_epoch=1000, num_epochs=config.num_epochs)
    create_optimizer(config.optimizer, schedule)


def create_model_of(config: Any, num_classes: int, axis_name: str | None = AXIS) -> nn.Module:
    """The network of a config; batch norm is synchronised over `axis_name`."""
    settings = model_settings(config)
    return create_model(config.model.name, num_classes, axis_name=axis_name, **settings)


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
        RunError: the run could not go on.
    """
    check_before_data(config, devices)
    check_workdir(workdir, config)
    first = jax.process_index() == 0
    with lock(workdir) if first else contextlib.nullcontext():
        _cache_compilations(workdir)
        dataset = load_dataset(config.dataset)
        wait_for_all("data")
        experiment = build_experiment(config, dataset, devices)
        if first:
            write(workdir / "config.json", config_json(config))
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
    if not any((workdir / "checkpoints").glob("[0-9]*")):
        raise InputError(f"workdir {str(workdir)!r} holds no checkpoint; train it first")
    dataset = load_dataset(config.dataset, only=("test",))
    wait_for_all("data")
    with lock(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        run = Run(build_experiment(config, dataset, devices), dataset, workdir, devices)
        run.restore_newest()
        return run.finish()


def _cache_compilations(workdir: Path) -> None:
    """Keeps compiled programs beside the workdir, unless another place is set."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = workdir.resolve().parent / ".jax_cache"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
