"""MLflow's server for tests, set up as in infra/mlflow: users, Postgres, files in S3."""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.servers.local_postgres import Postgres
from tests.servers.local_server import Server, free_ports, status_of

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Registry:
    """MLflow with users, on Postgres, its files in S3; and a user who is not the administrator."""

    uri: str
    user: str
    password: str
    server: Server
    secrets: tuple[str, ...]
    """What must never be shown."""

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs; nothing of Postgres or S3."""
        hidden = ("AWS_", "MLFLOW_", "PG", "RAY_")
        kept = {name: text for name, text in os.environ.items() if not name.startswith(hidden)}
        return kept | {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": self.user,
            "MLFLOW_TRACKING_PASSWORD": self.password,
            "RAY_USAGE_STATS_ENABLED": "0",
        }


@contextmanager
def running_mlflow(
    folder: Path, postgres: Postgres, s3_endpoint: str, bucket: str
) -> Iterator[Registry]:
    """Run the server; folder is where its settings and its log go."""
    (port,), store_key = free_ports(1), secrets.token_urlsafe(24)
    settings = (ROOT / "infra" / "mlflow" / "basic_auth.ini").read_text()
    assert "@postgres:5432/" in settings
    (folder / "basic_auth.ini").write_text(
        settings.replace("@postgres:5432/", f"@127.0.0.1:{postgres.port}/")
    )
    admin, password = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    cookies = secrets.token_urlsafe(32)
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith("MLFLOW_")},
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a process more, which nothing here needs
        "PGPASSWORD": postgres.password,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": cookies,
        "MLFLOW_S3_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "mlflow",
        "AWS_SECRET_ACCESS_KEY": store_key,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name=basic-auth"]
    command += ["--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri={postgres.uri('mlflow')}"]
    command += [f"--artifacts-destination=s3://{bucket}"]
    uri = f"http://127.0.0.1:{port}"
    server = Server(command, lambda: status_of(f"{uri}/health") == 200, folder / "log", environment)
    with server:
        answer = requests.post(
            f"{uri}/api/2.0/mlflow/users/create",
            json={"username": "trainer", "password": password},
            auth=("admin", admin),
            timeout=60,
        )
        assert answer.ok, answer.text
        hidden = (postgres.password, admin, password, cookies, store_key)
        yield Registry(uri, "trainer", password, server, hidden)
