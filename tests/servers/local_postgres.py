"""Postgres for tests, from the programs of the distribution, on loopback, with a password."""

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.local_server import Server, free_ports

POSTGRES = "/usr/lib/postgresql/*/bin/postgres"


@dataclass(frozen=True)
class Postgres:
    """A database server."""

    port: int
    password: str

    def uri(self, database: str) -> str:
        """Address without the password, which clients take from PGPASSWORD."""
        return f"postgresql+psycopg2://mlflow@127.0.0.1:{self.port}/{database}"


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Run Postgres with a user `mlflow` and the databases `mlflow` and `mlflow_auth`."""
    found = sorted(Path("/").glob(POSTGRES[1:]), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.fail(
            f"there is no {POSTGRES}; install it: apt-get install postgresql", pytrace=False
        )
    with tempfile.TemporaryDirectory(prefix="cil-postgres-", dir="/tmp") as made:
        yield from _run(found[-1].parent, Path(made))


def _run(binaries: Path, folder: Path) -> Iterator[Postgres]:
    user = None
    if os.geteuid() == 0:  # Postgres refuses root
        known = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in known else "nobody"
        shutil.chown(folder, user)
    password, (port,) = secrets.token_urlsafe(24), free_ports(1)
    secret = folder / "password"
    secret.write_text(password)
    secret.chmod(0o644)  # the folder is the user's alone
    environment = {**os.environ, "PGPASSWORD": password, "LC_ALL": "C.UTF-8"}
    as_user = {"user": user, "group": user, "extra_groups": []} if user else {}
    subprocess.run(
        [
            *(binaries / "initdb", "--pgdata", folder / "data", "--username", "mlflow"),
            *("--auth", "scram-sha-256", "--pwfile", secret, "--no-sync"),
        ],
        check=True,
        capture_output=True,
        cwd=folder,
        env=environment,
        **as_user,
    )
    reach = ("--host", "127.0.0.1", "--port", str(port), "--username", "mlflow")

    def ready():
        ask = [binaries / "pg_isready", *reach, "--dbname", "postgres"]
        return subprocess.run(ask, capture_output=True, check=False).returncode == 0

    log = folder / "log"
    log.touch()
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": folder,
        "fsync": "off",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    command = [str(binaries / "postgres"), "-D", str(folder / "data"), *options]
    with Server(command, ready, log, environment, user):
        for database in ("mlflow", "mlflow_auth"):
            subprocess.run([binaries / "createdb", *reach, database], check=True, env=environment)
        yield Postgres(port, password)
