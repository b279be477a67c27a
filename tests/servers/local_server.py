"""A server process of this machine for tests: started, waited for, killed, started again."""

import contextlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

START_S = 600


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def status_of(url: str) -> int | None:
    """Return the status of an answer, None without one."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@dataclass
class Server:
    """A server that can be killed and started again."""

    command: list[str]
    ready: Callable[[], bool]
    log: Path
    environment: dict[str, str]
    user: str | None = None
    process: subprocess.Popen | None = field(default=None, init=False)

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(self, *_) -> None:
        self.kill()

    def start(self) -> "Server":
        who = {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                start_new_session=True,
                **who,
            )
        deadline = time.monotonic() + START_S
        while not self.ready():
            assert self.process.poll() is None, f"{self.command}:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"not ready:\n{self.log.read_text()}"
            time.sleep(0.3)
        return self

    def kill(self) -> None:
        """Kill it and all it has started, at once."""
        if self.process is None:
            return
        family = [self.process]
        with contextlib.suppress(psutil.NoSuchProcess):
            family += psutil.Process(self.process.pid).children(recursive=True)
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                each.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None
