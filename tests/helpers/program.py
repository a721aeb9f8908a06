"""The program, started as a process of its own by a server that has imported everything already.

Importing takes as long as a short run. What is tested here begins after it; that the program starts
from nothing is tested in test_user_compiler.py.
"""

import multiprocessing
import os
import resource
import sys
import threading
import time

import pytest

from tests.conftest import QUICK, ROOT

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.helpers.imported"])


class Program:
    """`python launch.py ARGUMENTS` on one simulated device; it ends with the test at the latest."""

    def __init__(self, *arguments, limit_kib=None, cwd=ROOT):
        out, self._out, *reading = _collected()
        err, self._err, *more = _collected()
        self._reading = [*reading, *more]
        environment = dict(os.environ) | {"XLA_FLAGS": QUICK}
        given = (list(map(str, arguments)), out, err, environment, limit_kib, str(cwd))
        self._process = _server.Process(target=_run, args=given, daemon=True)
        self._process.start()
        out.close()
        err.close()

    out = property(lambda self: b"".join(self._out).decode())
    err = property(lambda self: b"".join(self._err).decode())

    def signal(self, number):
        os.kill(self._process.pid, number)

    def kill(self):
        self._process.kill()
        self._process.join()
        self._read_all()

    def ended(self):
        """Its exit status; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout=200):
        """The exit status."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            pytest.fail(f"no end within {timeout} s; {self.out[-1000:]}{self.err[-3000:]}")
        self._read_all()
        return self._process.exitcode

    def _read_all(self):
        """Waits until all that the program has written is read, which may be after its end."""
        for thread in self._reading:
            thread.join(20)  # a child of the program may hold the pipe open

    def finish(self, status=0, timeout=200):
        """Waits for the end; what was printed to stdout and stderr."""
        assert self.wait(timeout) == status, self.err[-3000:]
        return self.out, self.err

    def until(self, reached, timeout=100):
        """Waits until `reached()` is true, while the program runs."""
        deadline = time.monotonic() + timeout
        while not reached():
            if self.ended() is not None:
                self._read_all()
                assert reached(), self.err[-3000:]
            assert time.monotonic() < deadline, self.out[-1000:] + self.err[-3000:]
            time.sleep(0.02)

    def until_training(self):
        """Until its first step, or its end, where there is nothing left to train."""
        self.until(lambda: "parameters, " in self.out or self.ended() == 0)


def _collected():
    """A pipe's end to write to, the list of what was written to it so far, and who reads it."""
    reader, writer = _server.Pipe(duplex=False)
    written = []

    def collect():
        while data := os.read(reader.fileno(), 2**16):
            written.append(data)

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    return writer, written, thread


def _run(arguments, out, err, environment, limit_kib, cwd):
    for stream, pipe in ((sys.stdout, out), (sys.stderr, err)):
        os.dup2(pipe.fileno(), stream.fileno())
        stream.reconfigure(line_buffering=True)
        pipe.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if limit_kib:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_kib * 1024, limit_kib * 1024))
    from gini_jax.cli import main

    main(["launch.py", *arguments])
