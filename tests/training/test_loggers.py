"""Where metrics go besides metrics.jsonl: W&B offline and MLflow's SQLite store."""

import json
import sqlite3
import struct
import sys
import time

import jax
import pytest
from matplotlib.figure import Figure

from gini_jax.config.change import set_component
from gini_jax.drawing import as_png
from gini_jax.errors import InputError
from gini_jax.modes.train import main as train
from gini_jax.training.loggers import LOGGERS, create_loggers
from tests.helpers import tiny
from tests.helpers.runs import lines_of


def logger_config(*loggers, **changes):
    config = tiny.get_config("gini_kl")
    config.update({"loggers": loggers, "num_epochs": 2, **changes})
    set_component(config, "schedule", "constant")
    config.loss.start_epoch = 1
    return config


@pytest.mark.slow
def test_metrics_reach_mlflow_and_a_longer_run_goes_on_there(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="writes to MLflow, which is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for epochs in (1, 2):
        config = logger_config("mlflow", num_epochs=epochs)
        train(config, tmp_path, devices=jax.devices()[:1])
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        metrics = store.execute("SELECT key, value, step FROM metrics").fetchall()
        params = dict(store.execute("SELECT key, value FROM params").fetchall())
        runs = store.execute("SELECT name, status FROM runs").fetchall()
    assert runs == [("tiny-gini_kl-seed0", "FINISHED")]
    assert params["loss.terms.kl.weight"] == "0.5"
    lines = lines_of(tmp_path)  # metrics.jsonl is written although it was not asked for
    for line in lines:
        for key, value in line.items():
            assert (key, pytest.approx(value), line["step"]) in metrics
    result = json.loads((tmp_path / "result.json").read_text())
    tested = ("test_accuracy", pytest.approx(result["test_accuracy"]), result["steps"])
    assert tested in metrics
    pictures = {path.name for path in tmp_path.glob("mlartifacts/**/*.png")}
    assert pictures == {"impurity.png", "profiles.png", "confusion.png"}
    # What a run before an interruption has written is not written twice.
    logger = LOGGERS["mlflow"](tmp_path, config)
    logger.write(lines[0])
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        again = store.execute("SELECT key, value, step FROM metrics").fetchall()
    assert sorted(again) == sorted(metrics)


def test_tensorboard_has_every_line_at_once_and_drops_what_is_written_again(tmp_path, monkeypatch):
    """A killed process cannot flush; and three writers may open their files in one second."""
    reading = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="reads event files, which needs tensorboard",
    )
    monkeypatch.setattr(time, "time", lambda: 1e9)
    for steps in ((1, 2, 3), (2, 3)):  # the second run resumes after step 1
        logger = LOGGERS["tensorboard"](tmp_path, logger_config("tensorboard"))
        for step in steps:
            logger.write({"epoch": step, "step": step, "loss": float(step)})
    last = LOGGERS["tensorboard"](tmp_path, logger_config("tensorboard"))
    last.write({"step": 3, "test_loss": 9.0})
    png = as_png(lambda: Figure(figsize=(2, 1)))
    last.draw({"confusion": png}, 3)
    events = reading.EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert [event.value for event in events.Scalars("test_loss")] == [9.0]
    (image,) = events.Images("confusion")
    assert (image.width, image.height, image.encoded_image_string) == (220, 110, png)


def records_of(data):
    """The records of a W&B file: LevelDB's log format behind a header of 7 bytes."""
    place, parts = 7, []
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:  # the end of a block is padded
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        parts.append(data[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


@pytest.mark.slow
def test_metrics_reach_an_offline_run_of_wandb_and_a_longer_run_goes_on_there(
    tmp_path, monkeypatch
):
    pytest.importorskip("wandb", reason="writes to W&B, which is not installed")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for epochs in (1, 2):
        train(logger_config("wandb", num_epochs=epochs), tmp_path, devices=jax.devices()[:1])
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda x: x.stat().st_mtime)
    ids, logged = set(), []
    for file in files:
        for data in records_of(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                items = record.history.item
                logged.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    # Of two runs, and of the test of each; W&B joins them when they are synchronised.
    assert len(files) == 4 and len(ids) == 1
    lines = lines_of(tmp_path)
    tested = [line for line in logged if "test_accuracy" in line]
    assert len([line for line in logged if "confusion" in line]) == 2
    pictures = {path.name.partition("_")[0] for path in tmp_path.rglob("media/images/*.png")}
    assert pictures == {"impurity", "profiles", "confusion"}
    result = json.loads((tmp_path / "result.json").read_text())
    assert tested[-1]["test_accuracy"] == pytest.approx(result["test_accuracy"])
    logged = [line for line in logged if "epoch" in line]
    assert [line["step"] for line in logged] == [line["step"] for line in lines]
    for line, there in zip(lines, logged, strict=True):
        for key, value in line.items():
            assert there[key] == pytest.approx(value)


def test_a_logger_whose_library_is_missing_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"wandb needs the library wandb; pip install"):
        train(logger_config("wandb"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_service_that_fails_ends_no_run(tmp_path, monkeypatch, capsys):
    class Broken:
        def __init__(self, workdir, config):
            pass

        def write(self, line):
            raise ConnectionError("no route")

        close = write

    monkeypatch.setitem(LOGGERS._table, "wandb", Broken)
    jsonl, broken = create_loggers(tmp_path, logger_config("wandb"))
    for logger in (jsonl, broken):
        for step in (1, 2):
            logger.write({"step": step})
        logger.close()
    assert capsys.readouterr().err.count("warning: wandb failed (no route)") == 1
    assert lines_of(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_service_that_cannot_start_is_one_error(tmp_path, monkeypatch):
    def refused(workdir, config):
        raise PermissionError("not logged in")

    monkeypatch.setitem(LOGGERS._table, "wandb", refused)
    with pytest.raises(InputError, match=r"wandb cannot start \(not logged in\)"):
        create_loggers(tmp_path, logger_config("wandb"))


@pytest.mark.slow
def test_steps_are_logged_between_the_epochs_lines(tmp_path):
    """Three steps a call; an epoch has 18. The last step of an epoch is in the epoch's line."""
    plain, often = tmp_path / "plain", tmp_path / "often"
    for workdir, every in ((plain, 0), (often, 4)):
        config = logger_config("jsonl", "tensorboard", log_every_steps=every, steps_per_call=3)
        train(config, workdir, devices=jax.devices()[:1])
    epochs, lines = lines_of(plain), lines_of(often)
    assert [line["step"] for line in epochs] == [18, 36]
    assert [x["step"] for x in lines] == [4, 8, 12, 16, 18, 20, 24, 28, 32, 36]
    assert [line for line in lines if "epoch" in line] == epochs
    steps = [line for line in lines if "epoch" not in line]
    assert set(steps[0]) == {
        "step",
        *(key.replace("train_", "step_") for key in epochs[0] if key.startswith("train_")),
    }
    first = [line["step_loss"] for line in steps if line["step"] < 18]
    assert min(first) < epochs[0]["train_loss"] < max(first)
    sizes = [sum(x.stat().st_size for x in w.glob("*events*")) for w in (plain, often)]
    assert sizes[1] > sizes[0] > 0
