"""Files on disk or in a bucket, written as a whole; all writing to a workdir goes through here.

A path in a bucket is an `etils.epath.Path`, which has the methods of `pathlib.Path`.
"""

import contextlib
import importlib.util
import io
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from etils import epath

from gini_jax.errors import InputError, RunError

# Schemes of buckets, and the libraries that reach them.
LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}
_RAISE_ERRORS = {"aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "google", "s3fs"}


def storage_path(what: str, path: str, schemes: Sequence[str] = tuple(LIBRARIES)) -> Path:
    """A path on this machine, with `~` resolved, or in a bucket.

    Args:
        what: the flag or setting that names it, for messages.
        path: as given.
        schemes: of the buckets that it may lie in.

    Raises:
        InputError: the scheme is unknown, the bucket has no name, or a library is missing.

    Examples:
        >>> storage_path("--workdir", "runs/r18")
        PosixPath('runs/r18')
        >>> storage_path("--workdir", "ftp://host/run")
        Traceback (most recent call last):
        gini_jax.errors.InputError: --workdir=ftp://host/run: ...
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", path)
    if not found:
        return Path(path).expanduser()
    scheme = found[1]
    if scheme not in schemes or not re.match(rf"{scheme}://[^/]", path):
        raise InputError(
            f"{what}={path}: give a folder on this machine, or a bucket as "
            + " or ".join(f"{known}://BUCKET/FOLDER" for known in schemes)
        )
    if importlib.util.find_spec(LIBRARIES[scheme]) is None:
        raise InputError(
            f"{what}={path} needs the library {LIBRARIES[scheme]}: pip install {LIBRARIES[scheme]}"
        )
    import fsspec

    # Other processes, and the library that writes checkpoints, change what is there.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    for library in (LIBRARIES[scheme], "asyncio"):  # what fails is told in one error of ours
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return cast(Path, epath.Path(path))


def run_path(what: str, path: str) -> Path:
    """The folder of a run, like `storage_path`; a run can live where orbax writes checkpoints.

    Raises:
        InputError: as `storage_path`, or the path is in an S3 bucket.

    Examples:
        >>> run_path("--workdir", "s3://bucket/run")
        Traceback (most recent call last):
        gini_jax.errors.InputError: --workdir=s3://bucket/run: ...
    """
    if path.startswith("s3://"):
        raise InputError(
            f"{what}={path}: a run cannot live in S3, because orbax writes checkpoints only to "
            "disks and gs://; give gs://BUCKET/FOLDER, or a folder on this machine, which may be a "
            "mounted bucket"
        )
    return storage_path(what, path, schemes=("gs",))


def is_remote(path: Any) -> bool:
    """Whether a path lies in a bucket.

    Examples:
        >>> is_remote("runs/r18"), is_remote("gs://bucket/run")
        (False, True)
    """
    return "://" in str(path)


def write(path: Path, content: str | bytes) -> None:
    """Writes a file atomically: all of it or nothing.

    Raises:
        RunError: it could not be written.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing(path):
        if is_remote(path):
            path.write_bytes(data)  # a bucket shows an object when it is complete
            return
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(data)
        partial.replace(path)


def add(path: Path, text: str) -> None:
    """Adds text to the end of a file.

    Raises:
        RunError: it could not be written.
    """
    if is_remote(path):  # objects cannot grow
        with writing(path):
            before = path.read_text() if path.exists() else ""
        write(path, before + text)
        return
    with writing(path), path.open("a") as file:
        file.write(text)


def add_line(path: Path, line: dict[str, Any]) -> None:
    """Adds a line of JSON to a file.

    Raises:
        RunError: it could not be written.
    """
    add(path, json.dumps(line) + "\n")


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[TextIO]:
    """A file to add text to; in a bucket it is written at the end."""
    if not is_remote(path):
        with path.open("a") as file:
            yield file
        return
    text = io.StringIO()
    try:
        yield text
    finally:
        add(path, text.getvalue())


@contextlib.contextmanager
def local_folder(folder: Path) -> Iterator[Path]:
    """A folder for libraries that write to disks only; what lies in it goes to `folder`.

    For a folder on this machine it is that folder.
    """
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
        upload(Path(name), folder)


def upload(source: Path, target: Path) -> None:
    """Copies a local folder into one in a bucket."""
    for file in source.rglob("*"):
        if file.is_file():
            write(target / str(file.relative_to(source)), file.read_bytes())


def download(source: Path, target: Path) -> None:
    """Makes a local folder a copy of one in a bucket; files of the same size are not read again."""
    target.mkdir(parents=True, exist_ok=True)
    found = list(epath.Path(source).iterdir())
    for gone in set(target.iterdir()) - {target / there.name for there in found}:
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    for there in found:
        here = target / there.name
        if there.is_dir():
            download(cast(Path, there), here)
        elif not here.exists() or here.stat().st_size != there.stat().length:
            write(here, there.read_bytes())


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns a failure to reach a bucket into one error that names the path.

    Raises:
        InputError: it could not be read.
    """
    try:
        yield
    except Exception as error:
        if not is_remote(path) or not _of_storage(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{path} cannot be read ({reason}); check its name, the network and your credentials"
        ) from error


def _of_storage(error: Exception) -> bool:
    """Whether the system or a library that reaches buckets raised an error."""
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library in _RAISE_ERRORS


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns any failure to write to a path into one error that names the path and the free space.

    Raises:
        RunError: it could not be written.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and not (is_remote(path) and _of_storage(error)):
            raise
        raise not_written(path, error) from error


def not_written(path: Path, error: Exception) -> RunError:
    """The error for a file or folder that could not be written."""
    text = f"{path} could not be written: {error}\n"
    if is_remote(path):
        return RunError(text + "Check the bucket and its permissions, and run the command again.")
    free = shutil.disk_usage(path if path.is_dir() else path.parent).free
    return RunError(
        text + f"{free / 2**20:,.0f} MiB are free there. Older checkpoints are left as they are; "
        "make room and run the same command again."
    )
