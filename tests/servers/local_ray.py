"""A Ray head node for tests, with a dashboard that asks for a token."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.local_server import Server, free_ports, status_of

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Head:
    """A running head node."""

    address: str
    token: Path

    @property
    def environment(self) -> dict[str, str]:
        """What somebody who submits needs."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
        return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}

    def submit(self, *words, token=None, mode="token", address=None, limit_s=400):
        more = {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN_PATH": str(token or self.token)}
        command = [sys.executable, "-m", "pipelines", "submit"]
        return subprocess.run(
            [*command, "--address", address or self.address, "--json", *words],
            cwd=ROOT,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )


@contextmanager
def running_head(**more: str) -> Iterator[Head]:
    """Run a head node; `more` are environment variables of all its jobs."""
    with tempfile.TemporaryDirectory(prefix="cil-ray-", dir="/tmp") as made:  # a short path
        yield from _run(Path(made), more)


def _run(folder: Path, more: dict[str, str]) -> Iterator[Head]:
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    names += ("metrics-export-port", "dashboard-agent-grpc-port")
    given = dict(zip(names, free_ports(len(names)), strict=True))
    kept = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    kept.pop("PYTHONPATH", None)  # the job must live from what it took along
    environment = kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        **more,
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += ["--num-cpus=2", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}/ray"]
    command += [f"--{name}={port}" for name, port in given.items()]
    address = f"http://127.0.0.1:{given['dashboard-port']}"
    server = Server(
        command, lambda: status_of(f"{address}/api/jobs/") == 401, folder / "log", environment
    )
    with server:
        yield Head(address, token)
