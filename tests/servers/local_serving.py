"""A registered model behind `mlflow models serve` for tests."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.local_server import Server, free_ports, status_of


@contextmanager
def served(model: str, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Serve a model from a folder that has nothing of this repository; yields the address.

    Args:
        model: models:/NAME@ALIAS.
        folder: where the log goes.
        environment: with the registry's address, user and password.
    """
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"  # it calls uvicorn by name
    variables = {
        **environment,
        "PATH": path,
        "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": "600",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    server = Server(command, lambda: status_of(f"{url}/ping") == 200, folder / "log", variables)
    with server:
        yield url
