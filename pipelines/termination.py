"""A polite end on SIGTERM, which Kubernetes, SLURM and plain ``kill`` send first.

Ray ends the process on the spot, with its C++ stack on stderr. Here the signal becomes
an exception like Ctrl-C's: files are closed, Ray is shut down, the run is noted as failed.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["TERMINATED", "Terminated", "sigterm_raises", "was_terminated"]

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a command that SIGTERM ended, as shells give it."""


_asked = threading.Event()


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM; treated as Ctrl-C by all that knows that."""


def was_terminated() -> bool:
    """Tell whether SIGTERM came: in some of Ray's calls it leads to another error than ours."""
    return _asked.is_set()


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM while the block runs; enter it after Ray has started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> None:
    _asked.set()
    raise Terminated
