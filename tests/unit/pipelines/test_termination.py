"""SIGTERM, in a process of its own: the handler is the whole process's."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, time
from pipelines.__main__ import _guarded
from pipelines.termination import sigterm_raises

def action():
    with sigterm_raises():
        {body}
    return 0

code = _guarded(action, debug=False)
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
sys.exit(code)
"""
END = "os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)"


@pytest.mark.parametrize(
    "body",
    [
        END,
        # some calls of Ray lose the exception and raise another
        "\n        try:\n            " + END + "\n        except BaseException:\n"
        "            raise SystemError('returned a result with an exception set')",
    ],
    ids=["ours", "lost"],
)
def test_sigterm_ends_a_command_with_a_message_and_its_code(body):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body=body)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 143
    assert done.stderr == "ended by SIGTERM; run the same command again to go on\n"


def test_in_another_thread_nothing_is_changed():
    code = (
        "import signal, threading\n"
        "from pipelines.termination import sigterm_raises\n"
        "def use():\n"
        "    with sigterm_raises():\n"
        "        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL\n"
        "        print('fine')\n"
        "thread = threading.Thread(target=use); thread.start(); thread.join()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "fine\n", done.stderr
