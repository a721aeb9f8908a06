"""Files on disk or in a bucket, written as a whole; all writing to a workdir goes through here.

A path in a bucket is an `etils.epath.Path`, which has the methods of `pathlib.Path`.
"""

import contextlib
import errno
import importlib.util
import io
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from etils import epath

from gini_jax.errors import InputError, RunError, first_line

# Schemes of buckets, and the libraries that reach them.
LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}
_FORMULA = tuple("=+-@\t\r")
_RAISE_ERRORS = {"aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "google", "s3fs"}


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/gini_jax`, or `~/.cache/gini_jax`; without a home, a temporary folder.

    As the XDG specification says, an empty or relative `XDG_CACHE_HOME` does not count.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        return given / "gini_jax"
    try:
        return Path.home() / ".cache" / "gini_jax"
    except RuntimeError:  # no HOME, and no entry in the list of users
        return Path(tempfile.gettempdir()) / f"gini_jax-{os.getuid()}"


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
        try:
            return Path(path).expanduser()
        except RuntimeError as error:
            raise InputError(
                f"{what}={path}: ~ cannot be resolved, as there is no home folder; give a full path"
            ) from error
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
    for library in (LIBRARIES[scheme], "asyncio"):  # we report failures in one error
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return cast(Path, epath.Path(path))


def run_path(what: str, path: str) -> Path:
    """Like `storage_path`, for the folder of a run, which must be where orbax can write.

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


def refuse_patterns(folder: Path) -> None:
    """Refuses a folder whose path orbax would read as a pattern, so that checkpoints are lost.

    Raises:
        InputError: the path, with all folders above it, holds `[`, `*`, `?` or a backslash.

    Examples:
        >>> refuse_patterns(Path("/tmp/lr[0.1]"))
        Traceback (most recent call last):
        gini_jax.errors.InputError: '/tmp/lr[0.1]': checkpoints would be lost ...
    """
    whole = str(folder if is_remote(folder) else folder.resolve())
    if found := sorted(set(whole) & set("[*?\\")):
        raise InputError(
            f"{whole!r}: checkpoints would be lost in a folder with {' '.join(found)} in its path, "
            "which orbax reads as a pattern; rename it, or give another --workdir"
        )


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
    data = _encoded(content) if isinstance(content, str) else content
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
    with writing(path), path.open("ab") as file:
        file.write(_encoded(text))


def printable(name: str) -> str:
    r"""A name as text that can be written and shown, whatever a file's or class's name holds.

    Bytes that are not UTF-8, and characters that control a terminal, are written as numbers.

    Examples:
        >>> printable("a.png"), printable("\udcff"), printable("\x1b[2J")
        ('a.png', '\\xff', '\\x1b[2J')
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def _encoded(text: str) -> bytes:
    """A text as UTF-8; bytes of a name that are not UTF-8 are written as numbers."""
    return text.encode("utf-8", "backslashreplace")


def read_json(path: Path, fix: str = "bring it back, or delete the folder") -> dict[str, Any]:
    """What a file of a run holds.

    Args:
        path: the file.
        fix: what to do if it is damaged.

    Raises:
        InputError: it is missing, or holds no JSON object.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged or missing ({first_line(error)}); {fix}") from error
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path} is damaged (it holds {type(found).__name__} without keys); {fix}")
    return found


def add_line(path: Path, line: dict[str, Any]) -> None:
    """Adds a line of JSON to a file.

    Raises:
        RunError: it could not be written.
    """
    add(path, json_text(line, indent=None))


def csv_text(table: Any) -> str:
    """A pandas table as CSV; texts that a spreadsheet would evaluate get a leading apostrophe.

    Examples:
        >>> import pandas as pd
        >>> print(csv_text(pd.DataFrame({"class": ["=1+1", "cat"], "p": [-1.0, 0.5]})), end="")
        class,p
        '=1+1,-1.0
        cat,0.5
    """
    safe = table.map(lambda x: f"'{x}" if isinstance(x, str) and x[:1] in _FORMULA else x)
    return str(safe.to_csv(index=False))


def json_text(value: Any, indent: int | None = 2) -> str:
    r"""A value as JSON, with `null` for numbers that JSON lacks: NaN and infinity.

    Examples:
        >>> json_text({"ratio": float("inf"), "accuracy": 0.5}, indent=None)
        '{"ratio": null, "accuracy": 0.5}\n'
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[TextIO]:
    """A file to add text to; in a bucket it is written at the end."""
    if not is_remote(path):
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            yield file
        return
    text = io.StringIO()
    try:
        yield text
    finally:
        add(path, text.getvalue())


@contextlib.contextmanager
def local_folder(folder: Path) -> Iterator[Path]:
    """A local folder for libraries that can only write to disks; its files end up in `folder`.

    If `folder` is on this machine, it is `folder` itself.
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
    """Makes a local folder a copy of one in a bucket; unchanged files are not read again."""
    target.mkdir(parents=True, exist_ok=True)
    found = list(epath.Path(source).iterdir())
    memory = target / ".versions.json"  # the versions of the copied files, by name
    copied = json.loads(memory.read_text()) if memory.exists() else {}
    for gone in set(target.iterdir()) - {memory, *(target / there.name for there in found)}:
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    versions = {}
    for there in found:
        here = target / there.name
        if there.is_dir():
            download(cast(Path, there), here)
            continue
        versions[there.name] = _version(there)
        if not here.exists() or copied.get(there.name) != versions[there.name]:
            write(here, there.read_bytes())
    write(memory, json.dumps(versions))


def _version(path: epath.Path) -> str:
    """A key that changes when an object is replaced, even by one of the same size."""
    import fsspec

    files, name = fsspec.url_to_fs(str(path))
    return str(files.ukey(name))


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
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return RunError(text + "Check the permissions there, and run the command again.")
    free = shutil.disk_usage(path if path.is_dir() else path.parent).free
    return RunError(
        text + f"{free / 2**20:,.0f} MiB are free there. Older checkpoints are left as they are; "
        "make room and run the same command again."
    )
