"""Bounds for inputs that nobody would write: each ends soon, in little memory, with a message."""

import contextlib
import io
import re
import resource
import signal
import threading
from dataclasses import dataclass, field

import pytest

from pipelines.__main__ import _main

SECONDS = 20
"""An input takes far below one; a machine that does other things is slow."""
MEMORY = 2 * 2**30
"""Address space that all inputs of a test may add, threads included."""
NEVER = re.compile(r"Traceback|unexpected \w+:|0x[0-9a-f]{8,}")


class TookTooLong(BaseException):
    """No `except Exception` of ours may swallow it."""


@dataclass
class Runs:
    """Runs the command line in this process, and counts by exit code."""

    codes: dict[int, int] = field(default_factory=dict)

    @property
    def total(self):
        return sum(self.codes.values())

    def __call__(self, *words):
        """Run a command with bounds: its exit code, and what it wrote."""
        out, err = io.StringIO(), io.StringIO()
        with within_time(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = _main([str(word) for word in words])
            except SystemExit as error:  # argparse has explained a mistake
                code = error.code
        self.codes[code] = self.codes.get(code, 0) + 1
        said = err.getvalue()
        assert code in (0, 1, 2), (code, said[-2000:])
        assert not NEVER.search(said), said[-3000:]
        assert code == 0 or said.strip(), words
        assert len(said) < 50_000, len(said)
        return code, out.getvalue(), said


@contextlib.contextmanager
def within_time():
    """Raise in what takes longer than any input may."""

    def ring(*_):
        raise TookTooLong(f"an input took more than {SECONDS} s")

    assert threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def runs():
    """The command line, within bounds of time and memory."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield Runs()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def in_time():
    """The bound of time alone, for what is called without the command line."""
    return within_time
