"""infra/mlflow and infra/monitoring as far as they can be checked without starting anything."""

import configparser
import importlib.util
import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[3]
MLFLOW = ROOT / "infra" / "mlflow"
MONITORING = ROOT / "infra" / "monitoring"
COMPOSE = [MLFLOW / "compose.yaml", MONITORING / "compose.yaml"]
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "compose.json").read_text())
IMAGE = re.compile(r"[\w./-]+:(v?\d+\.\d+(\.\d+)?(-\w+)?|RELEASE\.[\dTZ-]+)")


def services(path):
    return yaml.safe_load(path.read_text())["services"]


# -- compose ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.parent.name)
def test_compose_would_take_it(path):
    jsonschema.Draft7Validator(SCHEMA).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("service", "key", "value"),
    [
        ("mlflow", "port", ["5000"]),
        ("mlflow", "depends_on", {"postgres": {"condition": "service_is_well"}}),
        ("postgres", "healthcheck", {"tests": ["CMD", "true"]}),
        ("postgres", "image", 17),
    ],
)
def test_a_typo_is_caught(service, key, value):
    compose = yaml.safe_load(COMPOSE[0].read_text())
    compose["services"][service][key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate(compose)


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.parent.name)
def test_images_are_pinned_volumes_are_there_and_secrets_are_not(path):
    compose = yaml.safe_load(path.read_text())
    for name, service in compose["services"].items():
        assert IMAGE.fullmatch(service["image"]), name
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (path.parent / source).exists(), volume
            else:
                assert source.startswith("/") or source in compose["volumes"], volume
        for variable, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", variable), variable
            assert "$" not in value
        for needed in service.get("depends_on", {}):
            assert needed in compose["services"]


def test_only_loopback_is_open():
    ports = [
        port for path in COMPOSE for s in services(path).values() for port in s.get("ports", [])
    ]
    assert ports == ["127.0.0.1:5000:5000"]
    on_host = services(MONITORING / "compose.yaml")
    assert all(service["network_mode"] == "host" for service in on_host.values())
    assert "--web.listen-address=127.0.0.1:9090" in on_host["prometheus"]["command"]
    assert on_host["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert on_host["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"


# -- MLflow -------------------------------------------------------------------------------------


def test_mlflow_knows_the_options_and_asks_for_passwords():
    folder = Path(importlib.util.find_spec("mlflow").origin).parent
    sources = [folder / "cli" / "__init__.py", folder / "utils" / "cli_args.py"]
    known = set(re.findall(r'"(--[a-z-]+)"', "".join(path.read_text() for path in sources)))
    program, command, *options = services(COMPOSE[0])["mlflow"]["command"]
    assert (program, command) == ("mlflow", "server")
    assert {option.partition("=")[0] for option in options} <= known
    assert "--app-name=basic-auth" in options


def test_the_image_has_the_mlflow_of_the_project():
    text = (MLFLOW / "Dockerfile").read_text()
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    packages = re.findall(r'"([a-z0-9-]+)(?:\[\w+\])?==([\d.]+)"', text)
    assert {name for name, _ in packages} == {"mlflow", "psycopg2-binary", "boto3"}
    for name, version in packages:
        if name != "psycopg2-binary":  # the project itself speaks to no Postgres
            assert f"{name}=={version}" in constraints
    assert "USER mlflow" in text
    python = re.search(r"PYTHON_IMAGE=(\S+)", (ROOT / "infra" / "Dockerfile").read_text())
    assert text.splitlines()[1] == f"FROM {python.group(1)}"


def test_users_are_kept_in_postgres_without_a_password_in_the_file():
    parser = configparser.ConfigParser()
    parser.read(MLFLOW / "basic_auth.ini")
    settings = dict(parser["mlflow"])
    assert settings["default_permission"] == "NO_PERMISSIONS"
    assert settings["database_uri"] == "postgresql+psycopg2://mlflow@postgres:5432/mlflow_auth"
    assert "admin_password" not in settings
    assert "mlflow_auth" in (MLFLOW / "create_auth_database.sql").read_text()


def test_the_settings_are_those_that_mlflow_has():
    shipped = Path(importlib.util.find_spec("mlflow").origin).parent / "server" / "auth"
    ours, theirs = configparser.ConfigParser(), configparser.ConfigParser()
    ours.read(MLFLOW / "basic_auth.ini")
    theirs.read(shipped / "basic_auth.ini")
    assert set(ours["mlflow"]) <= set(theirs["mlflow"])
    assert ours["mlflow"]["authorization_function"] == theirs["mlflow"]["authorization_function"]
    assert f'"{ours["mlflow"]["default_permission"]}"' in (shipped / "permissions.py").read_text()


@pytest.fixture
def secrets_written(tmp_path):
    spec = importlib.util.spec_from_file_location("make_env", MLFLOW / "make_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, tmp_path


def env(path):
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def test_secrets_are_new_fit_each_other_and_are_for_the_owner(secrets_written, capsys):
    module, folder = secrets_written
    assert module.main(folder) == 0
    files = {path.name: env(path) for path in folder.iterdir()}
    named = {name for service in services(COMPOSE[0]).values() for name in service["env_file"]}
    assert set(files) == named
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert files["postgres.env"]["POSTGRES_PASSWORD"] == files["mlflow.env"]["PGPASSWORD"]
    assert files["store.env"]["AWS_ACCESS_KEY_ID"] != files["minio.env"]["MINIO_ROOT_USER"]
    long = {v for values in files.values() for k, v in values.items() if re.search("PASS|KEY$", k)}
    assert len(long) == 5
    assert all(len(value) >= 32 for value in long)
    printed = capsys.readouterr().out
    assert not [value for value in long if value in printed]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert module.main(folder) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_git_and_docker_leave_files_with_secrets_alone(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    for name in ("infra/mlflow/mlflow.env", "infra/monitoring/grafana.env"):
        done = subprocess.run(["git", "check-ignore", "-q", name], cwd=tmp_path, check=False)
        assert done.returncode == 0, name
    example = ["git", "check-ignore", "-q", "infra/systemd/retrain.env.example"]
    assert subprocess.run(example, cwd=tmp_path, check=False).returncode == 1
    assert "infra/**/*.env" in (ROOT / ".dockerignore").read_text().splitlines()
