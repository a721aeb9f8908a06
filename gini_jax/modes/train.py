"""Trains, or resumes, a run; tests its best checkpoint; writes and draws the results."""

import contextlib
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gini_jax.analysis.text import summary_text
from gini_jax.data import load_dataset
from gini_jax.data.source import Dataset
from gini_jax.devices import wait_for_all
from gini_jax.storage import default_folder, is_remote, json_text, run_path, write
from gini_jax.training.checkpoints import Checkpoints
from gini_jax.training.experiment import build_experiment, check_before_data
from gini_jax.training.fit import fit
from gini_jax.training.initial import check_init, check_weights, untrained_variables
from gini_jax.training.lock import lock
from gini_jax.training.loggers import check_loggers, log_result
from gini_jax.training.loop import Callback
from gini_jax.training.result import measure, training_record
from gini_jax.training.workdir import check_data, check_workdir, write_run

FLAGS: dict[str, Any] = {
    "init_from": (None, str, "Start a new run from the weights of the run in this folder."),
}


def main(
    config: ConfigDict,
    workdir: Path,
    *,
    init_from: str | None = None,
    devices: Sequence[jax.Device] | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Trains a run to its end.

    Args:
        config: the settings; see `gini_jax.config`.
        workdir: the run's folder; one that holds a run of the same config is resumed.
        init_from: a run whose best weights a new run starts from; recorded as `model.init`.
        devices: to train on; all by default.
        callbacks: called during training, after the program's own.

    Returns:
        What `result.json` holds.

    Raises:
        InputError: bad input, before any compilation.
        RunError: the run could not continue.
    """
    _set_init(config, init_from)
    check_before_data(config, devices)
    check_loggers(config, workdir)
    check_workdir(workdir, config)
    new = not any((workdir / "checkpoints").glob("[0-9]*"))
    if new:
        check_init(config)

    def check(shapes: Dataset) -> None:
        if not new:
            check_data(workdir, shapes)
        experiment = build_experiment(config, shapes, devices)
        if new:
            check_weights(experiment)

    first = jax.process_index() == 0
    with lock(workdir) if first else contextlib.nullcontext():
        cache_compilations(workdir)
        dataset = load_dataset(config.dataset, check=check)
        wait_for_all("data")
        if not new:
            check_data(workdir, dataset)
        experiment = build_experiment(config, dataset, devices)
        if first:
            write_run(workdir, config, dataset)
        curves = CurvesNow(workdir) if config.report else lambda: None
        progress = fit(experiment, dataset, workdir, devices, curves, callbacks)
        with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
            best = checkpoints.variables(progress.best_step)
        initial = untrained_variables(experiment)
        numbers, arrays = measure(experiment, dataset, best, initial, devices)
        result = training_record(experiment, progress, best["params"], devices) | numbers
        if first:
            write_results(config, workdir, result, arrays)
            print(summary_text(result, workdir))
        return result


def _set_init(config: ConfigDict, init_from: str | None) -> None:
    if not init_from:
        return
    if config.model.init:  # from a config file: the flag wins
        print(f"weights come from {init_from} instead of {config.model.init}")
    config.model.init = str(run_path("--init_from", init_from))


class CurvesNow:
    """Draws curves.png during a run, at most every 30 seconds."""

    def __init__(self, workdir: Path):
        self._workdir, self._drawn_at = workdir, time.monotonic()

    def __call__(self) -> None:
        """Draws, if it is time."""
        if time.monotonic() - self._drawn_at > 30:
            _draw_curves(self._workdir)
            self._drawn_at = time.monotonic()


def _draw_curves(workdir: Path) -> None:
    from gini_jax.analysis import figures  # imports matplotlib
    from gini_jax.analysis.runs import read_unfinished
    from gini_jax.drawing import save, try_to_draw

    def draw() -> None:
        run = read_unfinished(workdir)
        save(workdir / "curves.png", figures.curves, {run.group: [run]})

    try_to_draw("curves.png", draw)


def write_results(
    config: ConfigDict, workdir: Path, result: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    """Writes result.json, arrays.npz and, if wanted, the pictures and the report."""
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    write(workdir / "arrays.npz", packed.getvalue())
    if config.report:
        from gini_jax.analysis import figures  # imports matplotlib
        from gini_jax.drawing import save, try_to_draw

        _draw_curves(workdir)
        png = workdir / "impurity.png"
        try_to_draw(png.name, save, png, figures.before_and_after, arrays)
    again = (workdir / "result.json").exists()
    write(workdir / "result.json", json_text(result))  # last: it marks the run as finished
    if not again and set(config.loggers) - {"jsonl"}:
        from gini_jax.analysis import figures
        from gini_jax.analysis.runs import read_run

        log_result(workdir, config, result, figures.of_one_run(read_run(workdir)))
    if config.report:
        from gini_jax.analysis.report import write_report
        from gini_jax.drawing import try_to_draw

        try_to_draw("report.html", write_report, workdir)


def title_of(result: dict[str, Any]) -> str:
    """The title of a picture: run, objective and seed."""
    return f"{result['config_name']}:{result['objective']}, seed {result['seed']}"


def cache_compilations(workdir: Path) -> None:
    """Keeps compiled programs next to the workdir, or on this machine if it lies in a bucket.

    `JAX_COMPILATION_CACHE_DIR` sets another folder.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = default_folder() if is_remote(workdir) else workdir.resolve().parent
        cache = folder / ".jax_cache"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
