"""The registry on MLflow's server with users: Postgres behind it, artifacts through it to S3."""

import psycopg2
import pytest

pytestmark = pytest.mark.slow

WRONG = "f" * 24


def test_champions_come_and_go(nights):
    nights.outputs("promote", "--version", "1", "--yes", "--force")
    nights.outputs("promote", "--version", "2", "--yes", "--force", "--reason", "looked at it")
    moved = nights.outputs("rollback", "--yes", "--reason", "users complain")
    assert (moved["version"], moved["previous"]) == ("1", "2")
    refused = nights.cil("promote", "--version", "2", "--yes")
    assert refused.returncode == 2, refused.stderr
    assert "has not passed the gate (tag gate: rolled back)" in refused.stderr
    status = nights.outputs("status")
    assert status["champion"] == "1"
    moves = [(move["action"], move["version"]) for move in status["history"]]
    assert moves[0] == ("promote", "1")
    assert moves[-2:] == [("promote", "2"), ("rollback", "1")]
    aliases = {each["version"]: each["aliases"] for each in status["versions"]}
    assert set(aliases) == {"1", "2"}
    assert "champion" in aliases["1"]


def test_artifacts_are_in_the_store_and_versions_in_the_database(nights, postgres, s3_client):
    found = s3_client.list_objects_v2(Bucket="mlflow-artifacts")["Contents"]
    models = [item for item in found if item["Key"].endswith("artifacts/model/model.json")]
    assert len(models) == 2
    connection = psycopg2.connect(
        host="127.0.0.1",
        port=postgres.port,
        user="mlflow",
        password=postgres.password,
        dbname="mlflow",
    )
    cursor = connection.cursor()
    cursor.execute("SELECT version FROM model_versions WHERE name = 'whole' ORDER BY version")
    assert [row[0] for row in cursor.fetchall()] == [1, 2]
    connection.close()


@pytest.mark.parametrize("name", ["status", "promote", "train"])
def test_a_wrong_password_is_explained(nights, name):
    words = ["--yes"] if name == "promote" else []
    done = nights.cil(name, *words, MLFLOW_TRACKING_PASSWORD=WRONG)
    assert done.returncode == 2, done.stderr
    uri = nights.registry.uri
    assert f"MLflow at {uri} refuses the user name or the password" in done.stderr
    shown = done.stdout + done.stderr
    assert "Traceback" not in shown
    assert WRONG not in shown
    nights.check_no_secret(shown)


def test_somebody_without_a_password_is_refused(nights):
    done = nights.cil("status", MLFLOW_TRACKING_USERNAME="", MLFLOW_TRACKING_PASSWORD="")
    assert done.returncode == 2, done.stderr
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in done.stderr


def test_no_secret_is_in_what_was_written(nights):
    files = [path for path in nights.output.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        hidden = (*nights.registry.secrets, nights.token)
        assert not [secret for secret in hidden if secret.encode() in content], path
