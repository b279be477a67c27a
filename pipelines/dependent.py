"""Child processes that do not outlive the command that started them, even if that is killed.

    command = dependent_command("package.module", "--argument", "value")

In: a module and its arguments. Out: a command that runs it as ``python -m`` would, and that the
kernel kills with its parent (Linux; elsewhere it only looks once whether the parent is alive).
"""

import ctypes
import os
import runpy
import signal
import sys

__all__ = ["dependent_command", "die_with"]

_PR_SET_PDEATHSIG = 1


def dependent_command(module: str, *arguments: str) -> list[str]:
    """Return a command that runs a module until it ends or this process dies.

    Args:
        module: as ``python -m`` takes it.
        *arguments: of the module.
    """
    return [sys.executable, "-m", __name__, str(os.getpid()), module, *arguments]


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies.

    Args:
        parent: process id of the parent.

    Raises:
        SystemExit: it is dead already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the parent died before its child started")


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
