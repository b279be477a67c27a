import dataclasses
import functools
import http.server
import json
import os
import socket
import sqlite3
import threading
import types
from contextlib import closing

import mlflow
import pytest
from mlflow.protos.databricks_pb2 import ErrorCode

from cil.errors import ConfigError, StageError
from pipelines import tracking
from pipelines.config import RunConfig
from pipelines.records import FORMAT_VERSION, Manifest
from pipelines.settings import OutputConfig, TrackingConfig
from pipelines.storage import read_json
from pipelines.tracking import registry, runs
from pipelines.tracking.client import client_of, store_of_process
from pipelines.tracking.versions import aliased

MANIFEST = Manifest(
    format_version=FORMAT_VERSION,
    fingerprint="f" * 64,
    identity={},
    identity_hash="i" * 64,
    buckets={"32x32x8": {"latents_shape": [8, 4, 8, 8], "clips": 3}},
    shards=[],
    totals={"clips": 3},
)


def config_for(uri="", folder="build/nowhere"):
    return RunConfig(tracking=TrackingConfig(uri=uri), output=OutputConfig(dir=str(folder)))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def closed_port():
    """A port of this machine where nothing listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture
def server():
    """A web server that answers every question with one status, or by its path and user."""
    servers = []

    def start(status):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                answer = status(self.path, self.headers) if callable(status) else status
                self.send_response(answer)
                self.end_headers()
                self.wfile.write(b"{}")

            do_POST = do_GET

            def log_message(self, *_):
                pass

        made = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(made)
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{made.server_port}"

    yield start
    for made in servers:
        made.shutdown()
        made.server_close()


# -- which store ----------------------------------------------------------------------------------


def test_the_setting_wins_over_the_environment_and_that_over_the_default(tmp_path, monkeypatch):
    default = f"sqlite:///{tmp_path.resolve()}/mlflow/mlflow.db"
    assert tracking.tracking_uri(config_for(folder=tmp_path)) == default
    assert not tracking.has_store(config_for(folder=tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from.environment")
    assert tracking.tracking_uri(config_for(folder=tmp_path)) == "http://from.environment"
    assert tracking.tracking_uri(config_for("http://set")) == "http://set"
    assert tracking.has_store(config_for())


def test_a_shown_uri_has_no_secret(monkeypatch):
    assert tracking.shown_uri(config_for("https://me:s3cret@host")) == "https://me:***@host"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://t0ken@host")
    assert tracking.shown_uri(config_for()) == "https://***@host"


# -- checks before the start ----------------------------------------------------------------------


def refused(uri, folder="build/nowhere", kind=ConfigError):
    with pytest.raises(kind) as caught:
        tracking.check_tracking(config_for(uri, folder))
    message = str(caught.value)
    assert message.startswith("tracking.uri")
    assert "cret" not in message
    return message


@pytest.mark.parametrize(
    "uri",
    ["mlruns", "./mlruns", "file:///tmp/mlruns", "ftp://host", "databricks", "C:\\mlruns"],
)
def test_what_is_no_database_and_no_server_is_refused(uri):
    assert "must be http(s)://, sqlite:/// or another database URI, got" in refused(uri)


def test_an_unknown_scheme_hides_its_secret():
    assert "ftp://me:***@host" in refused("ftp://me:s3cret@host")


def test_a_server_that_answers_is_fine(server):
    assert tracking.check_tracking(config_for(server(200))) is None
    assert tracking.check_tracking(config_for(server(200) + "/")) is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, ConfigError), (401, ConfigError), (500, StageError), (503, StageError)],
)
def test_a_server_that_answers_with_an_error_is_refused(server, status, kind):
    assert f"(it answered {status})" in refused(server(status), kind=kind)


def test_a_server_that_goes_away_before_the_user_is_known_is_no_wrong_password(server):
    asked = []

    def answer(path, headers):
        asked.append(path)
        return 200 if path == "/health" else 401 if len(asked) == 2 else 503

    assert "does not answer" in refused(server(answer), kind=StageError)


@pytest.mark.parametrize("user", ["", "me", "you"])
def test_a_user_whom_the_server_does_not_know_is_refused(server, monkeypatch, user):
    def answer(path, headers):
        known = headers.get("Authorization") == "Basic bWU6czNjcmV0"  # me:s3cret
        return 200 if path == "/health" or known else 401

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret" if user else "")
    uri = server(answer)
    if user == "me":
        assert tracking.check_tracking(config_for(uri)) is None
    else:
        message = refused(uri)
        assert f"MLflow at {uri} refuses the user name or the password" in message
        assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in message


def test_a_server_that_is_not_there_is_refused(closed_port):
    message = refused(f"http://me:s3cret@127.0.0.1:{closed_port}", kind=StageError)
    assert f"no MLflow server at http://me:***@127.0.0.1:{closed_port} (ConnectionError)" in message
    assert "start it with `mlflow server`" in message


@pytest.mark.parametrize(
    "uri", ["http", "http://", "http://[::1", "https://a b", "http://host:port"]
)
def test_an_address_that_is_none_is_refused(uri):
    assert "no MLflow server at" in refused(uri)


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("postgresql+psycopg2://me:s3cret@127.0.0.1:1/db", StageError),
        ("postgresql+psycopg2://me:s3/cret@127.0.0.1:1/db", StageError),
        ("postgresql://me:s3cret@127.0.0.1:port/db", ConfigError),
        ("mysql+pymysql://me:s3cret@127.0.0.1:1/db", ConfigError),
        ("mssql://me:s3cret@127.0.0.1/db", ConfigError),
    ],
)
def test_a_database_that_cannot_be_reached_is_refused(uri, kind):
    message = refused(uri, kind=kind)
    assert "tracking.uri: cannot connect to" in message
    assert "check the address and the driver" in message


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ('FATAL:  password authentication failed for user "me"', ConfigError),
        ('FATAL:  database "db" does not exist', ConfigError),
        ("fe_sendauth: no password supplied", ConfigError),
        ("(1045, \"Access denied for user 'me'\")", ConfigError),
        ("FATAL:  the database system is starting up", StageError),
        ("FATAL:  sorry, too many clients already", StageError),
        ("could not translate host name", StageError),
    ],
)
def test_a_database_that_is_away_is_no_mistake_of_the_user(monkeypatch, said, kind):
    import sqlalchemy

    class Engine:
        def connect(self):
            raise sqlalchemy.exc.OperationalError("connect", {}, Exception(said))

    monkeypatch.setattr(sqlalchemy, "create_engine", lambda uri: Engine())
    refused("postgresql://me:s3cret@host/db", kind=kind)


def test_a_local_database_that_is_in_use_is_no_mistake_of_the_user(tmp_path, monkeypatch):
    path = tmp_path / "mlflow.db"
    connect = functools.partial(sqlite3.connect, timeout=0.05)
    monkeypatch.setattr(sqlite3, "connect", connect)
    with closing(connect(path)) as other:
        other.execute("CREATE TABLE runs (id)")
        other.execute("BEGIN EXCLUSIVE")
        assert "is busy: database is locked" in refused(f"sqlite:///{path}", kind=StageError)


def test_a_local_database_may_be_new_or_there(tmp_path):
    assert tracking.check_tracking(config_for(folder=tmp_path)) is None
    assert tracking.check_tracking(config_for(f"sqlite:///{tmp_path}/new/deep/x.db")) is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.db").touch()
    assert tracking.check_tracking(config_for(f"sqlite:///{tmp_path}/empty.db")) is None


@pytest.mark.parametrize("place", ["folder", "text.db", "text.db/x.db"])
def test_a_place_that_can_hold_no_database_is_refused(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.db").write_text("This is not a database. " * 100)
    refused(f"sqlite:///{tmp_path}/{place}")


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "sqlite:"])
def test_a_database_in_memory_is_refused(uri):
    """Every process would see its own; the model would be gone at the end."""
    assert "sqlite:///FOLDER/mlflow.db" in refused(uri)


# -- a real store ---------------------------------------------------------------------------------


# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Configuration and client of a local store."""
    folder = tmp_path_factory.mktemp("store")
    config = RunConfig(
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", experiment="tests"),
        output=OutputConfig(dir=str(folder / "run")),
    )
    return config, client_of(config.tracking.uri)


def row(step, loss=None):
    value = float(step) if loss is None else loss
    return {"step": step, "loss": value, "grad_norm": 1.0, "learning_rate": 0.1, "sigma_cond": 2.0}


def history(client, run_id, name="loss"):
    return [(m.step, m.value) for m in client.get_metric_history(run_id, name)]


def test_starting_twice_gives_the_same_run(store, tmp_path):
    config, client = store
    run_id = tracking.start_run(config, tmp_path, MANIFEST, "a" * 64)
    client.set_terminated(run_id, status="FAILED")
    assert tracking.start_run(config, tmp_path, MANIFEST, "a" * 64) == run_id
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == f"train-{'a' * 12}"
    assert run.data.tags["manifest_fingerprint"] == MANIFEST.fingerprint
    assert run.data.params["train.num_steps"] == str(config.train.num_steps)
    assert run.data.params["seed"] == "0"
    assert not [name for name in run.data.params if name.startswith(("tracking", "output"))]
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == MANIFEST.fingerprint[:36]
    assert read_json(tmp_path / "mlflow_run.json")["run_id"] == run_id


def test_another_training_gets_another_run(store, tmp_path):
    config, _ = store
    first = tracking.start_run(config, tmp_path, MANIFEST, "a" * 64)
    assert tracking.start_run(config, tmp_path, MANIFEST, "b" * 64) != first


def test_a_run_that_was_deleted_is_started_anew(store, tmp_path):
    config, client = store
    first = tracking.start_run(config, tmp_path, MANIFEST, "c" * 64)
    client.delete_run(first)
    second = tracking.start_run(config, tmp_path, MANIFEST, "c" * 64)
    assert second != first
    assert client.get_run(second).info.lifecycle_stage == "active"


def test_a_note_of_a_run_that_the_store_does_not_know_is_ignored(store, tmp_path):
    """The database was deleted, the output folder was not."""
    config, client = store
    note = {"run_id": "0" * 32, "identity": "d" * 64, "uri": config.tracking.uri}
    (tmp_path / "mlflow_run.json").write_text(json.dumps(note))
    run_id = tracking.start_run(config, tmp_path, MANIFEST, "d" * 64)
    assert client.get_run(run_id).info.status == "RUNNING"


def test_run_and_version_have_the_commit_that_the_training_began_with(store, tmp_path, monkeypatch):
    config, client = store
    config = dataclasses.replace(
        config, tracking=dataclasses.replace(config.tracking, model_name="lineage")
    )
    monkeypatch.setattr(runs, "source_commit", lambda: {"git_commit": "c1", "git_dirty": "true"})
    run_id = tracking.start_run(config, tmp_path, MANIFEST, "7" * 64)
    monkeypatch.setattr(runs, "source_commit", lambda: {"git_commit": "c2", "git_dirty": "false"})
    assert tracking.start_run(config, tmp_path, MANIFEST, "7" * 64) == run_id
    logged = types.SimpleNamespace(model_uri="file:///nowhere", model_id=None)
    monkeypatch.setattr(registry, "_log_model", lambda *_: logged)
    registered = tracking.register_model(
        config, run_id, tmp_path, identity="i", input_example=None, tags={"a": "b"}, metrics={}
    )
    version = client.get_model_version("lineage", registered["version"])
    for tags in (client.get_run(run_id).data.tags, version.tags):
        assert (tags["git_commit"], tags["git_dirty"]) == ("c1", "true")
    assert version.tags["a"] == "b"


def test_what_a_run_holds_is_listed(store, tmp_path):
    config, client = store
    run_id = tracking.start_run(config, tmp_path, MANIFEST, "8" * 64)
    assert tracking.artifacts_of(config, run_id) == []
    (tmp_path / "report.html").write_text("x")
    client.log_artifact(run_id, str(tmp_path / "report.html"), artifact_path="deep")
    client.log_artifact(run_id, str(tmp_path / "report.html"))
    assert tracking.artifacts_of(config, run_id) == ["deep/", "report.html"]
    assert tracking.artifacts_of(config, "0" * 32) == []


def test_finishing_closes_the_run(store, tmp_path):
    config, client = store
    run_id = tracking.start_run(config, tmp_path, MANIFEST, "h" * 64)
    tracking.finish_run(config, run_id)
    assert client.get_run(run_id).info.status == "FINISHED"
    tracking.finish_run(config, run_id, failed=True)
    assert client.get_run(run_id).info.status == "FAILED"


@pytest.mark.parametrize("uri", ["models:/missing/1", "models:/missing@champion"])
def test_a_model_that_is_not_there_is_explained(store, uri):
    config, _ = store
    with pytest.raises(StageError, match=f"there is no {uri} in sqlite:///.*; check the name"):
        tracking.download_model(uri, config.tracking.uri)


@pytest.mark.parametrize("code", ["RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"])
def test_a_model_that_is_not_there_has_no_champion(store, monkeypatch, code):
    """A server with users says so of what a user may not see, be it there or not."""

    def refuse(*_):
        raise mlflow.MlflowException("no", error_code=ErrorCode.Value(code))

    monkeypatch.setattr(mlflow.MlflowClient, "get_registered_model", refuse)
    assert aliased(store[0], "champion") is None


def test_using_a_store_leads_no_child_process_to_it(store, monkeypatch):
    uri = store[0].tracking.uri
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///elsewhere.db")
    before = dict(os.environ)
    with pytest.raises(StageError):
        tracking.download_model("models:/nothing@champion", uri)
    with store_of_process(uri):
        assert os.environ["MLFLOW_REGISTRY_URI"] == os.environ["MLFLOW_TRACKING_URI"] == uri
    assert dict(os.environ) == before


def test_artifacts_of_an_oddly_named_folder_stay_in_it(store, tmp_path):
    """Without a server MLflow is told where artifacts go, as a URI."""
    folder = tmp_path / "my runs & caf\u00e9 #1 100% a@b"
    config = RunConfig(output=OutputConfig(dir=str(folder)))
    run_id = tracking.start_run(config, folder, MANIFEST, "l" * 64)
    client = client_of(tracking.tracking_uri(config))
    client.log_text(run_id, "content", "note.txt")
    (note,) = folder.rglob("note.txt")
    assert note.is_relative_to(folder / "mlflow" / "artifacts")
    assert (folder / "mlflow" / "mlflow.db").is_file()
    assert tracking.check_tracking(config) is None
    assert tracking.shown_uri(config).endswith("a@b/mlflow/mlflow.db")


def test_an_experiment_that_was_deleted_is_explained(store, tmp_path):
    config, client = store
    config = dataclasses.replace(
        config, tracking=dataclasses.replace(config.tracking, experiment="deleted")
    )
    client.delete_experiment(client.create_experiment("deleted"))
    with pytest.raises(StageError, match="deleted"):
        tracking.start_run(config, tmp_path, MANIFEST, "k" * 64)
    assert list(tmp_path.iterdir()) == []


# -- validation, files, the machine ---------------------------------------------------------------


def artifacts(client, run_id, path=None):
    return sorted(item.path for item in client.list_artifacts(run_id, path))


def test_a_validation_is_sent_once_with_its_files(store, tmp_path):
    config, client = store
    run_id = tracking.start_run(config, tmp_path, MANIFEST, "v" * 64)
    folder = tmp_path / "step-000100"
    folder.mkdir()
    for name in ("metrics.json", "grid.png", "video-00.gif"):
        (folder / name).write_text(name)
    uri = config.tracking.uri
    record = {"step": 100, "metrics": {"val_loss": 0.5, "val_motion_ratio": 0.9}}
    for _ in range(2):  # a resumed run comes here again
        assert tracking.log_validation(uri, run_id, record, folder)
    assert history(client, run_id, "val_loss") == [(100, 0.5)]
    assert history(client, run_id, "val_motion_ratio") == [(100, 0.9)]
    assert artifacts(client, run_id, "validation/step-000100") == [
        f"validation/step-000100/{name}" for name in ("grid.png", "metrics.json", "video-00.gif")
    ]
    assert tracking.logged_validations(config, run_id) == {100}


def test_files_and_tags_are_sent(store, tmp_path):
    config, client = store
    run_id = tracking.start_run(config, tmp_path, MANIFEST, "w" * 64)
    (tmp_path / "first_batch.png").write_text("picture")
    assert tracking.log_files(config.tracking.uri, run_id, [tmp_path / "first_batch.png"])
    assert artifacts(client, run_id) == ["first_batch.png"]
    assert tracking.set_tag(config.tracking.uri, run_id, "motion_collapse", "it froze" * 2000)
    assert client.get_run(run_id).data.tags["motion_collapse"].startswith("it froze")


def test_an_evaluation_is_sent(store, tmp_path):
    config, client = store
    run_id = tracking.start_run(config, tmp_path, MANIFEST, "e" * 64)
    (tmp_path / "metrics.json").write_text("{}")
    measures, files = {"motion": 1.5, "ssim": 0.25}, [tmp_path / "metrics.json"]
    assert tracking.log_evaluation(config.tracking.uri, run_id, measures, files)
    assert history(client, run_id, "eval_motion") == [(0, 1.5)]
    assert history(client, run_id, "eval_ssim") == [(0, 0.25)]
    assert artifacts(client, run_id, "evaluation") == ["evaluation/metrics.json"]
    assert not tracking.log_evaluation(config.tracking.uri, "0" * 32, measures, files)


def test_what_cannot_be_sent_is_a_warning(store, tmp_path, caplog):
    config, _ = store
    uri = config.tracking.uri
    record = {"step": 100, "metrics": {"val_loss": 0.5}}
    assert not tracking.log_validation(uri, "0" * 32, record, tmp_path)
    assert not tracking.set_tag(uri, "0" * 32, "name", "value")
    run_id = tracking.start_run(config, tmp_path, MANIFEST, "x" * 64)
    assert not tracking.log_files(uri, run_id, [tmp_path / "nothing.png"])
    assert caplog.text.count("not sent, MLflow at") == 3
