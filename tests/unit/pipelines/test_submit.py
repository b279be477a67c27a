"""`cil submit` against a cluster that a test plays; tests/distributed has a real one."""

import json
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from cil.errors import ConfigError, StageError
from pipelines import job_client, submit
from pipelines.__main__ import _main
from pipelines.job_client import Job, end_of, explained, follow, send_once

ADDRESS = "http://head:8265"


class Cluster:
    """Plays the job port: jobs by id, and what their logs and ends are."""

    def __init__(self):
        self.jobs, self.logs, self.submitted = {}, {}, []

    def add(self, name, entrypoint="python -m pipelines doctor", **state):
        values = {"status": "RUNNING", "message": "", "driver_exit_code": None}
        self.jobs[name] = SimpleNamespace(entrypoint=entrypoint, **{**values, **state})

    def submit_job(self, **settings):
        name = settings["submission_id"]
        if name in self.jobs:
            raise RuntimeError(f"Request failed with status code 400: {name} already exists.")
        self.submitted.append(settings)
        self.add(name, settings["entrypoint"])
        return name

    def get_job_info(self, name):
        if name not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: {name} does not exist.")
        return self.jobs[name]

    async def tail_job_logs(self, name):
        for piece in self.logs.get(name, [[]]).pop(0):
            if isinstance(piece, BaseException):
                raise piece
            yield piece
        if not self.logs.get(name):
            self.end(name)

    def end(self, name):
        self.jobs[name].status = "SUCCEEDED"

    def get_address(self):
        return ADDRESS


@pytest.fixture
def cluster(monkeypatch):
    cluster = Cluster()
    monkeypatch.setattr(submit, "connect", lambda address: cluster)
    return cluster


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working directory with what a job needs; it is also where we are."""
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "__main__.py").write_text("")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "run.yaml").write_text("output: {dir: /mnt/run}")
    (tmp_path / "infra").mkdir()
    (tmp_path / "infra" / "runtime_env.yaml").write_text(
        "excludes: [build]\nenv_vars: {RAY_USAGE_STATS_ENABLED: '0'}"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(*command, name=None):
    return submit.make_job(list(command), Path(), None, name)


TRAIN = ("train", "--config", "configs/run.yaml")

# -- what is sent -------------------------------------------------------------------------------


def test_a_job_is_our_command_in_the_working_directory(checkout):
    found = job("train", "--config", "configs/run.yaml", "--data.videos", "/mnt/my clips")
    assert found.entrypoint == (
        "python -m pipelines train --config configs/run.yaml --data.videos '/mnt/my clips'"
    )
    assert found.runtime_env == {
        "working_dir": str(checkout),
        "excludes": ["build"],
        "env_vars": {"RAY_USAGE_STATS_ENABLED": "0"},
    }
    assert found.submission_id.startswith("cil-train-")


def test_the_id_is_the_content_and_nothing_else(checkout):
    first = job(*TRAIN).submission_id
    (checkout / "build").mkdir()
    (checkout / "build" / "result.bin").write_text("left out")
    assert job(*TRAIN).submission_id == first
    assert job(*TRAIN, "--train.num-steps", "9").submission_id != first
    (checkout / "configs" / "run.yaml").write_text("output: {dir: /mnt/other}")
    changed = job(*TRAIN).submission_id
    assert changed != first
    (checkout / "infra" / "runtime_env.yaml").write_text("excludes: [build]")
    assert job(*TRAIN).submission_id not in (first, changed)
    assert job(*TRAIN, name="mine").submission_id == "mine"


def test_what_git_ignores_is_not_part_of_it(checkout):
    subprocess.run(["git", "init", "-q"], check=True)
    (checkout / ".gitignore").write_text("*.log\n")
    first = job(*TRAIN).submission_id
    (checkout / "submit.log").write_text("grows while it is packed")
    assert job(*TRAIN).submission_id == first


def test_a_configuration_elsewhere_counts_by_its_content(checkout, tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "run.yaml"
    path.write_text("output: {dir: /mnt/a}")
    first = job("train", "--config", str(path)).submission_id
    path.write_text("output: {dir: /mnt/b}")
    assert job("train", "--config", str(path)).submission_id != first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to run; write: cil submit"),
        (["--"], "nothing to run"),
        (["train"], "does not know 'train'"),
        (["--wait", "--", "train"], "does not know '--wait'"),
        (["--", "rm", "-rf"], "runs commands of cil, got 'rm'; known: run, encode"),
        (["--", "submit", "--", "train"], "runs commands of cil, got 'submit'"),
        (["--", "train", "--config", "nowhere.yaml"], "is not in the working directory"),
        (["--", "train", "--config", "../run.yaml"], "is not in the working directory"),
        (["--working-dir", "configs", "--", "train"], "must be a checkout with pipelines/ in it"),
        (["--config", "configs/run.yaml", "--", "train"], "--config belongs to the job"),
        *(
            (["--address", address, "--", *TRAIN], "--address must be http://HOST:8265")
            for address in ("127.0.0.1:9", "head", "ray://head:1", "http://", "http://h:x", "")
        ),
        (["--dry-run", "--address", "head:8265", "--", *TRAIN], "got head:8265"),
        (
            ["--", "train", "--tracking.uri", "http://me:hunter2@host"],
            "the command holds a password or token",
        ),
    ],
)
def test_a_mistake_is_found_before_anything_is_sent(checkout, cluster, capsys, words, message):
    assert _main(["submit", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "hunter2" not in captured.err
    assert cluster.submitted == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (f"env_vars: {{{name}: hunter2}}", rf"must hold no secret, but env_vars\.{name} is")
            for name in (
                "AWS_SECRET_ACCESS_KEY",
                "RAY_AUTH_TOKEN",
                "WANDB_API_KEY",
                "OPENAI_APIKEY",
                "DB_PASS",
                "pgpassword",
                "SSH_KEY_1",
                "BASIC_AUTH",
                "MYSQL_PWD",
                "MLFLOW_TRACKING_PASSWORD",
                "GOOGLE_APPLICATION_CREDENTIALS_JSON",
                "AZURE_STORAGE_CONNECTION_STRING",
            )
        ),
        (
            "env_vars: {MLFLOW_TRACKING_URI: 'http://me:hunter2@host'}",
            r"env_vars\.MLFLOW_TRACKING_URI is one or has one in an address",
        ),
        ("env_vars: {INDEX: '[\"https://hunter2@host/x\"]'}", r"but env_vars\.INDEX is"),
        ("env_vars: {HOOK: 'https://host/x?token=hunter2'}", r"but env_vars\.HOOK is"),
        ("pip: ['--extra-index-url https://me:hunter2@host/simple']", "but pip is one or has"),
        ("pip: {packages: ['git+https://hunter2@github.com/a/b@v1']}", r"but pip\.packages is"),
        ("py_modules: ['https://me:hunter2@host/a.zip']", "but py_modules is"),
        ("config: {'https://me:hunter2@host': 1}", r"but config\.https://me:\*\*\*@host is"),
        ("pip: requirements.txt", r"but pip \(requirements.txt\) is"),
        ("exclude: [build]", "settings that are not used here: exclude"),
        ("excludes: build", "excludes must be a list"),
        ("env_vars: [A=1]", "excludes must be a list, and env_vars a mapping"),
    ],
)
def test_a_runtime_environment_is_checked(checkout, text, message):
    (checkout / "infra" / "runtime_env.yaml").write_text(text)
    (checkout / "requirements.txt").write_text("-i https://me:hunter2@host/simple\nnumpy")
    with pytest.raises(ConfigError, match=message) as caught:
        job(*TRAIN)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "env_vars: {MLFLOW_TRACKING_URI: 'http://host:5000', PYTHONPATH: /opt/cil}",
        "env_vars: {TOKENIZERS_PARALLELISM: 'false', RAY_AUTH_MODE: token, BYPASS: '1'}",
        "env_vars: {GIT_AUTHOR_NAME: me, MLFLOW_EXPERIMENT_NAME: a, KEYBOARD: de}",
        "pip: ['pkg @ git+https://github.com/a/b@v1.0', 'git+ssh://git@github.com/a/b.git']",
        "pip: [numpy==2.0, --extra-index-url https://host/simple]",
        "pip: nowhere.txt",
    ],
)
def test_what_is_no_secret_is_taken_along(checkout, text):
    (checkout / "infra" / "runtime_env.yaml").write_text(text)
    assert job(*TRAIN).runtime_env.keys() & {"env_vars", "pip"}


def test_a_dry_run_sends_nothing_and_results_that_would_be_lost_are_named(
    checkout, cluster, capsys
):
    words = ["submit", "--dry-run", "--json", "--", *TRAIN]
    assert _main(words) == 0
    captured = capsys.readouterr()
    shown = json.loads(captured.out)["submit"]
    assert shown["outputs"]["submission_id"] == job(*TRAIN).submission_id
    assert "is relative" not in captured.err
    assert _main([*words, "--output.dir", "build/run"]) == 0
    assert "warning: output.dir = build/run is relative" in capsys.readouterr().err
    assert cluster.submitted == []


# -- once ---------------------------------------------------------------------------------------


def a_job(name="cil-doctor-1", entrypoint="python -m pipelines doctor"):
    return Job(submission_id=name, entrypoint=entrypoint, runtime_env={"working_dir": "."})


def test_a_job_that_is_there_is_not_doubled():
    cluster = Cluster()
    assert send_once(cluster, a_job(), again=False) == ("cil-doctor-1", False)
    assert send_once(cluster, a_job(), again=False) == ("cil-doctor-1", True)
    assert len(cluster.submitted) == 1


def test_again_starts_what_has_ended_and_only_that():
    cluster = Cluster()
    cluster.add("cil-doctor-1", status="FAILED", driver_exit_code=1)
    assert send_once(cluster, a_job(), again=False) == ("cil-doctor-1", True)
    assert send_once(cluster, a_job(), again=True) == ("cil-doctor-1-2", False)
    assert send_once(cluster, a_job(), again=True) == ("cil-doctor-1-2", True)  # it runs
    cluster.end("cil-doctor-1-2")
    assert send_once(cluster, a_job(), again=True) == ("cil-doctor-1-3", False)


def test_an_id_of_another_command_is_refused():
    cluster = Cluster()
    cluster.add("mine", "python -m pipelines train")
    with pytest.raises(ConfigError, match=r"mine at .* is another job"):
        send_once(cluster, a_job("mine"), again=False)


def test_two_that_submit_at_once_follow_one_job(monkeypatch):
    cluster = Cluster()
    cluster.add("cil-doctor-1")
    answers = iter([RuntimeError("Request failed with status code 404: x"), None])
    ask = cluster.get_job_info

    def late(name):
        answer = next(answers, None)
        if answer is not None:
            raise answer
        return ask(name)

    monkeypatch.setattr(cluster, "get_job_info", late)
    assert send_once(cluster, a_job(), again=False) == ("cil-doctor-1", True)
    assert cluster.submitted == []


# -- how it ends --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ({"status": "RUNNING"}, None),
        ({"status": "PENDING"}, None),
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0),
        ({"status": "FAILED", "driver_exit_code": 3}, 3),
        ({"status": "FAILED", "driver_exit_code": 2}, 2),
        ({"status": "FAILED", "driver_exit_code": -9}, 137),
        ({"status": "FAILED", "driver_exit_code": None}, 1),
        ({"status": "FAILED", "driver_exit_code": 0}, 1),
        ({"status": "STOPPED", "driver_exit_code": None}, 128 + signal.SIGTERM),
    ],
)
def test_the_exit_code_is_the_drivers(state, code):
    cluster = Cluster()
    cluster.add("job", **state)
    assert end_of(cluster, "job").exit_code == code


def test_a_log_is_shown_once_though_the_connection_breaks():
    cluster = Cluster()
    cluster.add("job")
    broken = RuntimeError("WebSocket connection closed unexpectedly")
    cluster.logs["job"] = [
        ["one\n", "two\n", broken],
        ["one\ntwo\nth", broken],
        [OSError("refused")],
        ["one\n", "two\nthree\n", "four\n"],
    ]
    shown, waits = [], []
    ending = follow(cluster, "job", shown.append, sleep=waits.append)
    assert "".join(shown) == "one\ntwo\nthree\nfour\n"
    assert (ending.exit_code, len(waits)) == (0, 3)


def test_a_cluster_that_is_gone_is_given_up():
    cluster = Cluster()
    cluster.add("job")
    cluster.logs["job"] = [[OSError("refused")] for _ in range(99)]
    now = Clock()
    with pytest.raises(StageError, match="lost contact with job at http://head:8265: refused"):
        follow(cluster, "job", print, sleep=now.pass_by, clock=now)
    assert 120 < now() <= 124


class Clock:
    """Seconds that pass when somebody waits."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds

    def pass_by(self, seconds):
        self.seconds += seconds


@pytest.mark.parametrize("pieces", [["one\n"], []], ids=["a log", "a silent job"])
def test_hours_of_work_are_no_silence(pieces):
    cluster, now, shown = Cluster(), Clock(), []
    cluster.add("job")
    attempts = []

    async def tail(name):
        attempts.append(now())
        if len(attempts) in (2, 3, 5):  # the tunnel is opened again
            raise OSError("refused")
        for piece in pieces:
            yield piece
        if len(attempts) < 6:
            now.pass_by(3600.0)
            raise RuntimeError("WebSocket connection closed unexpectedly")
        cluster.end(name)

    cluster.tail_job_logs = tail
    assert follow(cluster, "job", shown.append, sleep=now.pass_by, clock=now).exit_code == 0
    assert (shown, len(attempts)) == (pieces, 6)


def test_a_job_is_followed_to_its_exit_code(checkout, cluster, capsys, monkeypatch):
    def fails(name):
        cluster.jobs[name].status = "FAILED"
        cluster.jobs[name].driver_exit_code = 3
        cluster.jobs[name].message = "exit code 3, last logs:\nthe gate refuses"

    monkeypatch.setattr(cluster, "end", fails)
    name = job(*TRAIN).submission_id
    cluster.logs[name] = [["the gate refuses\n"]]
    assert _main(["submit", "--json", "--", *TRAIN]) == 3
    captured = capsys.readouterr()
    assert captured.err.count("the gate refuses") == 1
    assert f"error: {name} ended as FAILED: exit code 3, last logs:" in captured.err
    outputs = json.loads(captured.out.splitlines()[-1])["submit"]["outputs"]
    assert outputs == {
        "submission_id": name,
        "address": ADDRESS,
        "status": "FAILED",
        "exit_code": 3,
    }


def test_without_waiting_the_job_goes_on(checkout, cluster, capsys):
    assert _main(["submit", "--no-wait", "--json", "--", *TRAIN]) == 0
    shown = json.loads(capsys.readouterr().out)["submit"]
    assert (shown["outputs"]["status"], shown["reused"]) == ("RUNNING", False)
    assert _main(["submit", "--no-wait", "--json", "--", *TRAIN]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["submit"]["reused"] is True
    assert "is on http://head:8265 already" in captured.err


def test_ctrl_c_leaves_the_job_and_says_how_to_stop_it(checkout, cluster, capsys):
    name = job(*TRAIN).submission_id
    cluster.logs[name] = [["started\n", KeyboardInterrupt()], []]
    assert _main(["submit", "--", *TRAIN]) == 130
    assert cluster.jobs[name].status == "RUNNING"
    assert f"ray job stop --address {ADDRESS} {name}" in capsys.readouterr().err


def test_a_directory_that_changes_while_it_is_packed_is_noticed(
    checkout, cluster, capsys, monkeypatch
):
    send = cluster.submit_job

    def slow(**settings):
        (checkout / "output.txt").write_text("the log of the submission itself")
        return send(**settings)

    monkeypatch.setattr(cluster, "submit_job", slow)
    assert _main(["submit", "--no-wait", "--", *TRAIN]) == 0
    assert "the working directory changed while it was packed" in capsys.readouterr().err


# -- errors -------------------------------------------------------------------------------------


def authentication_error(text):
    from ray.exceptions import AuthenticationError

    return AuthenticationError(text)


def rpc_error(text):
    from ray.exceptions import RpcError

    return RpcError(text)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            authentication_error("Authentication required: Unauthorized: Missing token"),
            ConfigError,
            r"asks for a token \(401\); set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH",
        ),
        (
            authentication_error("Authentication failed: Forbidden: Invalid token"),
            ConfigError,
            r"refuses the token \(403\); set RAY_AUTH_MODE=token",
        ),
        (
            authentication_error("RAY_AUTH_TOKEN_PATH is set but file cannot be opened"),
            ConfigError,
            "the token for Ray at here cannot be read: RAY_AUTH_TOKEN_PATH is set",
        ),
        (ConnectionError("refused"), StageError, "cannot reach Ray's job port at here: refused"),
        (rpc_error("failed to connect"), StageError, "cannot reach Ray's job port at here: failed"),
        (OSError("no route"), StageError, "cannot reach Ray's job port at here: no route"),
        (
            ValueError("Package size (900.0MiB) exceeds the maximum size of 500.00MiB."),
            ConfigError,
            "the working directory is too large",
        ),
        (
            RuntimeError("Request failed: 500\nTraceback"),
            StageError,
            "refuses: Request failed: 500$",
        ),
        (ConfigError("ours"), ConfigError, "^ours$"),
    ],
)
def test_errors_say_what_to_do(error, kind, message):
    with pytest.raises(kind, match=message), explained("here"):
        raise error


def test_an_address_that_is_given_comes_before_the_environment(monkeypatch):
    """Ray's own client would take RAY_ADDRESS, and talk to another cluster."""
    import ray.job_submission
    from ray.dashboard.utils import get_address_for_submission_client

    monkeypatch.setenv("RAY_ADDRESS", "http://other:8265")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://another:8265")
    monkeypatch.setattr(
        ray.job_submission, "JobSubmissionClient", get_address_for_submission_client
    )
    assert job_client.connect("http://mine:8265") == "http://mine:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    assert job_client.connect(None) == "http://other:8265"
