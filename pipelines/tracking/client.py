"""The MLflow client of a store, and its errors as ours."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cil.errors import StageError
from pipelines.config import redact_uri
from pipelines.shown_text import shortened

__all__ = ["client_of", "explained", "reason_of", "sent", "store_of_process", "tracking_errors"]

_log = logging.getLogger(__name__)
_STATEMENT = ("[SQL:", "[parameters:", "(Background on this error")
_NOISE = "raised as a result of Query-invoked autoflush"


def client_of(uri: str) -> Any:
    """Make an MLflow client that gives up soon and never unpickles."""
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow

    # Advice on type hints, some of it about MLflow's own classes. After the import, which sets
    # filters of its own.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\.")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)

    path = uri.partition("sqlite:///")[2]
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def explained(doing: str, uri: str) -> Iterator[None]:
    """Turn MLflow's errors into one that says what was being done and where."""
    import mlflow
    import requests

    try:
        yield
    except (mlflow.MlflowException, requests.RequestException) as error:
        raise StageError(
            f"MLflow at {redact_uri(uri)} failed while {doing}: {reason_of(error)}; when it works "
            "again, run the same command to go on"
        ) from error


def reason_of(error: Exception) -> str:
    """Return the line that says what is wrong of an error of MLflow or its database, no secrets.

    SQLAlchemy may say first that a query has written what was waiting, and after the reason it
    repeats the statement with all of its values.
    """
    text = str(error)
    for start in _STATEMENT:
        text = text.partition(start)[0]
    lines = [line.strip() for line in text.splitlines() if _NOISE not in line]
    return shortened(next((line for line in lines if line), type(error).__name__))


def tracking_errors() -> tuple[type[Exception], ...]:
    """Return what MLflow raises when a store is away or refuses."""
    import mlflow
    import requests

    return (mlflow.MlflowException, requests.RequestException, OSError)


def sent(uri: str, send: Callable[[Any], None], what: str) -> bool:
    """Send something that may be missing: a failure is logged and returned."""
    client = client_of(uri)
    try:
        send(client)
    except tracking_errors() as error:
        shown = redact_uri(uri)
        _log.warning("%s not sent, MLflow at %s failed: %s", what, shown, reason_of(error))
        return False
    return True


@contextmanager
def store_of_process(uri: str) -> Iterator[None]:
    """Let mlflow use this store where its functions take none, or do not pass theirs on.

    mlflow also writes it into the environment, where it would lead every later child process of
    ours to this store; both are put back.
    """
    import mlflow

    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_registry_uri(None)
        mlflow.set_tracking_uri(None)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
