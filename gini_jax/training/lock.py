"""One writer per workdir: a file lock on disks, a lease with a heartbeat in buckets."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from gini_jax.errors import Busy
from gini_jax.storage import is_remote, write

HEARTBEAT_SECONDS = 30
EXPIRES_SECONDS = 120


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keeps other processes from writing to a workdir.

    On a disk the system releases the lock when the process ends, however it ends. A bucket has no
    locks: there a lease, the file `lease.json`, names its owner and is renewed every 30 seconds.
    Another process may take it over after 120 seconds without a heartbeat, or at once if the owner
    was a process of this machine that is dead. The machines' clocks must agree within a minute. Two
    processes that start within the same second can both believe that they own it until the next
    heartbeat; then the one that lost it says so.

    If no run began, because its input was rejected, nothing is left behind.

    Raises:
        Busy: another process holds it; the error names its host and process number.
    """
    with _lease(workdir) if is_remote(workdir) else _file_lock(workdir):
        yield


@contextlib.contextmanager
def _file_lock(workdir: Path) -> Iterator[None]:
    holder = workdir / ".lock_holder"
    held = FileLock(workdir / ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        name = holder.read_text() if holder.exists() else "another process"
        raise _refused(workdir, name, "wait for it, stop it") from error
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        if not (workdir / "config.json").exists():
            holder.unlink(missing_ok=True)
            (workdir / ".lock").unlink(missing_ok=True)
        held.release()


@contextlib.contextmanager
def _lease(workdir: Path) -> Iterator[None]:
    path = workdir / "lease.json"
    mine = {"host": socket.gethostname(), "process": os.getpid(), "id": uuid.uuid4().hex}
    there = _read(path)
    age = time.time() - there.get("time", 0) if there else EXPIRES_SECONDS
    if there and age < EXPIRES_SECONDS and not _is_dead(there):
        raise _refused(
            workdir,
            f"process {there['process']} on {there['host']}, lease renewed {age:.0f} s ago",
            f"wait for it, stop it, wait {EXPIRES_SECONDS - age:.0f} s if it is dead",
        )
    write(path, json.dumps(mine | {"time": time.time()}))
    if (_read(path) or {}).get("id") != mine["id"]:
        raise _refused(workdir, "a process that started at the same moment", "wait for it")
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            now = _read(path)
            if now and now["id"] != mine["id"]:
                print(
                    f"warning: process {now['process']} on {now['host']} took over {workdir}; stop "
                    "one of the two, or their files will be mixed",
                    file=sys.stderr,
                )
                return
            with contextlib.suppress(Exception):  # the next heartbeat tries again
                write(path, json.dumps(mine | {"time": time.time()}))

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if (_read(path) or {}).get("id") == mine["id"]:
            with contextlib.suppress(Exception):  # then it expires
                path.unlink()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except Exception:  # missing, or being replaced
        return None


def _is_dead(owner: dict[str, Any]) -> bool:
    same_host = owner["host"] == socket.gethostname()
    return same_host and not psutil.pid_exists(owner["process"])


def _refused(workdir: Path, holder: str, what: str) -> Busy:
    return Busy(
        f"workdir {str(workdir)!r} is being written by {holder}; {what}, or choose another "
        "--workdir"
    )
