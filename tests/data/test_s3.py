"""Data in S3, through moto's server on loopback; runs cannot live there."""

import numpy as np
import pytest
from PIL import Image

from gini_jax.config.change import default_config
from gini_jax.data import load_dataset
from gini_jax.errors import InputError
from gini_jax.storage import run_path, storage_path, upload

fsspec = pytest.importorskip("fsspec", reason="reads s3://, which needs fsspec")
pytest.importorskip("s3fs", reason="reads s3://, which needs s3fs")
server = pytest.importorskip("moto.server", reason="needs a server in place of S3: moto[server]")


@pytest.fixture(scope="module")
def bucket():
    """A server for this process, with one empty bucket."""
    started = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    started.start()
    host, port = started.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    started.stop()


def bucket_config(folder):
    config = default_config().dataset
    config.update(name="folder", data_dir=str(folder), image_size=8, val_size=2)
    config.update(test_size=4, num_classes=0)
    return config


def test_a_folder_of_images_is_copied_once_and_follows_the_bucket(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name in ("dark", "light"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (12, 9 + i, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.png")
    upload(tmp_path / "set", storage_path("data_dir", f"{bucket}/set"))
    here, there = (load_dataset(bucket_config(x)) for x in (tmp_path / "set", f"{bucket}/set"))
    assert there.class_names == ("dark", "light")
    for split, (images, labels) in here.splits.items():
        np.testing.assert_array_equal(there.splits[split].images, images)
        np.testing.assert_array_equal(there.splits[split].labels, labels)
    copies = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.png")}
    assert len(copies) == 16
    storage_path("data_dir", f"{bucket}/set/dark/7.png").unlink()
    fewer = load_dataset(bucket_config(f"{bucket}/set"))
    assert sum(len(split.labels) for split in fewer.splits.values()) == 15
    left = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.png")}
    assert left.items() < copies.items()  # nothing was copied again
    there = storage_path("data_dir", f"{bucket}/set/dark/0.png")
    replaced = bytearray(there.read_bytes())
    replaced[-1] ^= 1  # of the same size
    there.write_bytes(bytes(replaced))
    load_dataset(bucket_config(f"{bucket}/set"))
    (copy,) = (tmp_path / "cache").rglob("dark/0.png")
    assert copy.read_bytes() == bytes(replaced)


def test_a_folder_or_bucket_that_is_not_there_is_one_error(bucket):
    for folder in ("s3://bucket/none", "s3://nowhere/set"):
        with pytest.raises(InputError, match=f"{folder} (is not there|cannot be read)"):
            load_dataset(bucket_config(folder))


def test_a_run_cannot_live_in_s3():
    with pytest.raises(InputError, match=r"cannot live in S3.*give gs://BUCKET/FOLDER"):
        run_path("--workdir", "s3://bucket/run")
