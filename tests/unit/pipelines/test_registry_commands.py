"""promote, rollback and status as a person uses them, on a real store."""

import dataclasses
import json
import os

import pytest

from cil.errors import ConfigError
from pipelines import registry_commands
from pipelines.config import RunConfig
from pipelines.promotion import GATE_TAG
from pipelines.registry_commands import RegistryOptions, run_promote, run_rollback
from pipelines.registry_status import run_status
from pipelines.settings import OutputConfig, TrackingConfig
from pipelines.tracking.client import client_of
from pipelines.tracking.versions import aliased, move_alias

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

REPORT = {"outputs": {"status": "refused", "reason": "motion", "fingerprint": "f1", "version": "2"}}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    config = RunConfig(tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", model_name="m"))
    client = client_of(config.tracking.uri)
    client.create_registered_model("m")
    for tag, fingerprint in (("passed", "f0"), ("passed", "f1"), ("refused", "f2")):
        tags = {GATE_TAG: tag, "retrain_fingerprint": fingerprint}
        client.create_model_version("m", "file:///nowhere", tags=tags)
    move_alias(config, "champion", "2")
    move_alias(config, "previous_champion", "1")
    return config


@pytest.fixture
def config(store, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.registry_status.next_start", lambda: None)
    return dataclasses.replace(store, output=OutputConfig(dir=str(tmp_path / "output")))


@pytest.fixture
def answer(monkeypatch):
    """Let somebody be there; returns what to answer with, and what was asked."""
    asked = []

    def set_answer(text):
        def ask(question):
            asked.append(question)
            if text is None:
                raise EOFError
            return text

        monkeypatch.setattr("builtins.input", ask)
        monkeypatch.setattr(registry_commands.sys.stdin, "isatty", lambda: True, raising=False)
        return asked

    return set_answer


def night(config, name, files, *, time):
    folder = config.output.dir + f"/retrain/{name}"
    os.makedirs(folder)
    for file, content in files.items():
        path = f"{folder}/{file}"
        with open(path, "w") as opened:
            opened.write(content if isinstance(content, str) else json.dumps(content))
        os.utime(path, (time, time))
    return folder


@pytest.mark.parametrize("text", [None, "", "n", "no", "yess"])
def test_whoever_does_not_confirm_changes_nothing(config, answer, text):
    asked = answer(text)
    with pytest.raises(ConfigError, match="not confirmed, nothing was changed"):
        run_promote(config, RegistryOptions(version="1"))
    with pytest.raises(ConfigError, match="not confirmed, nothing was changed"):
        run_rollback(config, RegistryOptions())
    assert [question.split(" the champion")[0] for question in asked] == [
        "make version 1 of m",
        "make version 1 of m",
    ]
    assert aliased(config, "champion").version == "2"


@pytest.mark.parametrize(
    ("version", "said"),
    [("99", "has no version 99"), ("abc", "has no version abc"), ("3", "has not passed the gate")],
)
def test_a_mistake_is_told_before_anybody_is_asked(config, answer, version, said):
    asked = answer("yes")
    with pytest.raises(ConfigError, match=said):
        run_promote(config, RegistryOptions(version=version))
    assert asked == []


def test_a_place_without_a_store_is_told_and_nothing_is_made(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("pipelines.registry_status.next_start", lambda: None)
    config = RunConfig(output=OutputConfig(dir=str(tmp_path / "mistyped")))
    report = run_status(config)
    assert report.outputs["store_exists"] is False
    assert (report.outputs["champion"], report.outputs["versions"]) == (None, [])
    shown = " ".join(capsys.readouterr().err.split())
    assert "nothing is there:" in shown
    assert "check output.dir and tracking.uri" in shown
    options = RegistryOptions(version="1", yes=True)
    for command in (run_promote, run_rollback):
        with pytest.raises(ConfigError, match=r"nothing is registered: there is no .*mlflow\.db"):
            command(config, options)
    assert list(tmp_path.iterdir()) == []


def test_status_of_no_night_has_the_fingerprint_of_the_newest_version(config):
    outputs = run_status(config).outputs
    assert (outputs["champion"], outputs["champion_fingerprint"]) == ("2", "f1")
    assert outputs["last_fingerprint"] == "f2"
    assert outputs["scheduled_runs"] == []
    assert outputs["store_exists"] is True


def test_the_last_fingerprint_is_that_of_the_last_night(config, capsys):
    night(config, "a", {"plan.json": {"fingerprint": "f0"}, "report.json": REPORT}, time=2e9)
    night(config, "b", {"plan.json": {"fingerprint": "f9"}}, time=1e9)
    outputs = run_status(config).outputs
    assert outputs["last_fingerprint"] == "f1"
    assert [each["status"] for each in outputs["scheduled_runs"]] == ["unfinished", "refused"]
    shown = " ".join(capsys.readouterr().err.split())
    assert "last night that had something to do, 2033-05-18T03:33:20+00:00" in shown
    assert "a night with nothing new leaves no report" in shown
    night(config, "c", {"plan.json": {"fingerprint": "f3"}}, time=3e9)
    assert run_status(config).outputs["last_fingerprint"] == "f3"
    assert "unfinished, it is at work, or it has failed" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize("file", ["report.json", "plan.json"])
@pytest.mark.parametrize("content", ['{"a": 1}', "[]", '{"outputs": {}}', "{", "", "null"])
def test_a_damaged_night_is_named_and_the_rest_is_shown(config, capsys, file, content):
    night(config, "good", {"report.json": REPORT}, time=1e9)
    folder = night(config, "bad", {file: content}, time=2e9)
    outputs = run_status(config).outputs
    assert [each["status"] for each in outputs["scheduled_runs"]] == ["refused", "unreadable"]
    assert f"{folder}/{file}" in outputs["scheduled_runs"][1]["reason"]
    assert outputs["last_fingerprint"] == "f1"
    shown = capsys.readouterr().err.replace("\n", "")
    assert "unreadable night:" in shown
    assert "refused, motion" in shown
