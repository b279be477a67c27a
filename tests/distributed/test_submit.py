"""`cil submit` on a real head node with a dashboard and token authentication."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
START_S = 180
FAKE = """
import sys
print("the job says", *sys.argv[1:], flush=True)
sys.exit({"verify": 3, "doctor": 0}[sys.argv[1]])
"""


def free_ports(count):
    with ExitStack() as held:
        sockets = [held.enter_context(closing(socket.socket())) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass(frozen=True)
class Head:
    """A running head node."""

    address: str
    token: Path

    def submit(self, *words, token=None, mode="token", address=None):
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("RAY_")
        }
        environment |= {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN_PATH": str(token or self.token)}
        command = [sys.executable, "-m", "pipelines", "submit"]
        return subprocess.run(
            [*command, "--address", address or self.address, "--json", *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )


@pytest.fixture(scope="module")
def head():
    folder = Path(tempfile.mkdtemp(prefix="cil-ray-", dir="/tmp"))  # sockets want a short path
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    names += ("metrics-export-port", "dashboard-agent-grpc-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("PYTHONPATH", None)  # the job must live from what it took along
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += ["--num-cpus=2", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}/ray"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        wait_for(address, process, folder / "log")
        yield Head(address, token)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(address, process, log):
    """Wait until the dashboard refuses us for want of a token."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/api/jobs/", timeout=5).close()
        except urllib.error.HTTPError as error:
            if error.code == 401:
                return
        except OSError:
            pass
        time.sleep(1)
    raise AssertionError(f"no dashboard at {address}:\n{log.read_text()}")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A working directory whose commands end as the test wants."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "pipelines").mkdir()
    (folder / "pipelines" / "__main__.py").write_text(FAKE)
    return str(folder)


def outputs(done):
    return json.loads(done.stdout.splitlines()[-1])["submit"]["outputs"]


def test_a_failure_keeps_its_exit_code_and_is_not_run_twice(head, checkout):
    done = head.submit("--working-dir", checkout, "--", "verify", "the data")
    assert done.returncode == 3, done.stderr
    assert "the job says verify the data" in done.stderr
    assert outputs(done)["status"] == "FAILED"
    second = head.submit("--working-dir", checkout, "--", "verify", "the data")
    assert second.returncode == 3, second.stderr
    assert "already" in second.stderr
    assert outputs(second)["submission_id"] == outputs(done)["submission_id"]
    again = head.submit("--working-dir", checkout, "--again", "--", "verify", "the data")
    assert again.returncode == 3, again.stderr
    assert outputs(again)["submission_id"] == f"{outputs(done)['submission_id']}-2"


def test_an_id_of_ones_own_is_followed(head, checkout):
    words = ("--working-dir", checkout, "--submission-id", "mine")
    started = head.submit(*words, "--no-wait", "--", "doctor")
    assert started.returncode == 0, started.stderr
    done = head.submit(*words, "--", "doctor")
    assert done.returncode == 0, done.stderr
    assert "mine is on" in done.stderr
    assert "the job says doctor" in done.stderr
    other = head.submit(*words, "--", "verify", "x")
    assert other.returncode == 2
    assert "mine at" in other.stderr
    assert "is another job" in other.stderr


def test_our_own_command_runs_from_what_was_packed(head):
    done = head.submit("--", "run", "--config", "configs/demo.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "time_noise:" in done.stderr
    assert outputs(done)["status"] == "SUCCEEDED"


def test_a_wrong_token_and_none_are_refused(head, checkout, tmp_path):
    words = ("--working-dir", checkout, "--", "doctor", "secretly")
    wrong = tmp_path / "wrong"
    wrong.write_text("f" * 64)
    done = head.submit(*words, token=wrong)
    assert done.returncode == 2, done.stderr
    assert "refuses the token (403); set RAY_AUTH_MODE=token" in done.stderr
    done = head.submit(*words, mode="disabled")
    assert done.returncode == 2, done.stderr
    assert "asks for a token (401)" in done.stderr
    done = head.submit(*words, token=tmp_path / "nothing")
    assert done.returncode == 2, done.stderr
    assert "cannot be read" in done.stderr
    assert head.token.read_text() not in done.stderr
    (free,) = free_ports(1)
    done = head.submit(*words, address=f"http://127.0.0.1:{free}")
    assert done.returncode == 1, done.stderr
    assert "cannot reach Ray's job port" in done.stderr
