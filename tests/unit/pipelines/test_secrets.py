"""Secrets planted wherever one may be, and looked for wherever a command writes."""

import json
import socket

import pytest
import yaml

from pipelines.__main__ import _main
from pipelines.config import config_to_yaml, validate_config
from pipelines.tracking.runs import _parameters

PLANT = "pl4nt3d"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIA" + PLANT.upper(),
    "AWS_SECRET_ACCESS_KEY": f"{PLANT}-aws",
    "AWS_SESSION_TOKEN": f"{PLANT}-session",
    "MLFLOW_TRACKING_USERNAME": "team",
    "MLFLOW_TRACKING_PASSWORD": f"{PLANT}-mlflow",
    "RAY_AUTH_TOKEN": f"{PLANT}-ray",
    "HF_TOKEN": f"{PLANT}-hub",
}


@pytest.fixture(scope="module")
def port():
    """A port of this machine where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def places(port):
    """URIs with secrets in them, by kind."""
    return {
        "http": f"http://team:{PLANT}/p@ss@127.0.0.1:{port}",
        "postgres": f"postgresql://team:{PLANT}@127.0.0.1:{port}/mlflow?password={PLANT}",
        "token": f"https://127.0.0.1:{port}/clip.mp4?token={PLANT}&x=1",
        "signed": f"https://127.0.0.1:{port}/a.csv?X-Amz-Signature={PLANT}&X-Amz-Date=1",
        "user": f"https://team:{PLANT}@127.0.0.1:{port}/clip.mp4",
        "bucket": f"s3://AKIA:{PLANT}@bucket/clips",
    }


@pytest.fixture(params=["text", "json"])
def cil(request, capsys, monkeypatch, tmp_path):
    """Run a command and fail where a plant shows; returns (exit code, stdout, stderr)."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = _main([*arguments[:1], "--log-format", request.param, *arguments[1:]])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        for where, text in (("stdout", out), ("stderr", err)):
            assert PLANT not in text.lower(), (where, text)
        if request.param == "json":
            assert all("message" in json.loads(line) for line in err.splitlines())
        for path in tmp_path.rglob("*"):
            if path.is_file() and path.name != "given.yaml":
                assert PLANT.encode() not in path.read_bytes().lower(), path
        return code, out, err

    return run


@pytest.mark.parametrize("command", ["encode", "train", "evaluate", "retrain", "status"])
def test_a_dump_of_the_settings(cil, places, command):
    code, out, _ = cil(
        command,
        "--dry-run",
        *("--tracking.uri", places["postgres"]),
        *("--data.videos", places["token"]),
        *("--output.dataset", places["bucket"]),
        *("--cluster.address", places["http"].replace("http", "ray")),
    )
    assert code == 0
    assert yaml.safe_load(out)["tracking"]["uri"].startswith("postgresql://team:***@127.0.0.1")


@pytest.mark.parametrize("kind", ["http", "postgres"])
def test_doctor(cil, places, kind):
    code, out, err = cil(
        "doctor", "--json", "--tracking.uri", places[kind], "--data.videos", places["user"]
    )
    assert code == 1
    assert "***" in out
    assert "***" in err


@pytest.mark.parametrize("kind", ["http", "postgres"])
@pytest.mark.parametrize("debug", [False, True])
def test_status_of_a_server_that_is_away(cil, places, kind, debug):
    more = ["--debug"] if debug else []
    code, _, err = cil("status", "--json", *more, "--tracking.uri", places[kind])
    assert code == 2
    assert "team:***@127.0.0.1" in err


@pytest.mark.parametrize("kind", ["token", "signed", "user", "bucket", "http"])
def test_an_encoding_that_is_refused(cil, places, kind):
    code, _, err = cil("encode", "--debug", "--data.videos", places[kind])
    assert code in (1, 2)
    assert "***" in err


def test_a_sample_from_a_store_that_is_away(cil, places, tmp_path):
    (tmp_path / "image.png").write_bytes(b"")
    store = ["--tracking-uri", places["http"]]
    code, _, err = cil("sample", "--model", "models:/x@champion", "--image", "image.png", *store)
    assert code in (1, 2)
    assert "error" in err


def test_mistakes_in_a_file_that_holds_secrets(cil, places, tmp_path):
    given = {
        "tracking": {"uri": [places["http"]], "url": places["http"]},
        "train": {"num_steps": places["postgres"]},
        "data": {"videos": {"at": places["signed"]}},
    }
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(given))
    code, _, err = cil("train", "--config", "given.yaml", "--debug")
    assert code == 2
    assert "train.num_steps" in err


def test_mistakes_on_the_command_line(cil, places):
    code, _, err = cil("train", "--train.num-steps", f"{places['http']}/{'long' * 30}")
    assert code == 2
    assert "num-steps" in err
    code, _, err = cil("sample", "--tracking-uri", places["http"])
    assert code == 2
    assert '"level"' not in err or '"level": "error"' in err


def test_a_job_with_a_secret_in_its_command(cil, places):
    code, _, err = cil("submit", "--dry-run", "--", "train", "--tracking.uri", places["http"])
    assert code == 2
    assert "error" in err


def test_what_is_sent_to_mlflow(places):
    config = validate_config(
        {
            "data": {"videos": places["token"], "video_root": places["bucket"]},
            "output": {"dataset": places["bucket"]},
            "tracking": {"uri": places["postgres"]},
            "cluster": {"address": places["http"]},
        },
        source="the test",
    )
    assert PLANT not in str(_parameters(config))
    assert PLANT not in config_to_yaml(config)
