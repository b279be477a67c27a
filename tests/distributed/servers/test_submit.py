"""`cil submit` on a real head node with a dashboard and token authentication."""

import json

import pytest

from tests.servers.local_ray import running_head
from tests.servers.local_server import free_ports

pytestmark = pytest.mark.slow

FAKE = """
import sys
print("the job says", *sys.argv[1:], flush=True)
sys.exit({"verify": 3, "doctor": 0}[sys.argv[1]])
"""


@pytest.fixture(scope="module")
def head():
    with running_head() as made:
        yield made


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
