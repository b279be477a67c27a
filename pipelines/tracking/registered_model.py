"""The registered model of a run, in its store."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig
from pipelines.tracking.client import client_of, explained
from pipelines.tracking.store import tracking_uri

__all__ = ["LONGEST_TAG", "LONGEST_TEXT", "missing_database", "model_of", "registry"]

LONGEST_TAG = 5000
"""Of a tag of a model or version, in signs: the column in Postgres; sqlite does not enforce it."""
LONGEST_TEXT = 5000
"""Of a description, in signs, for the same reason."""
# A server with users says PERMISSION_DENIED of what is not there, but to administrators.
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED")


@contextmanager
def registry(config: RunConfig, doing: str) -> Iterator[Any]:
    """Give a client of the run's store; MLflow's errors say what was being done.

    Raises:
        StageError: MLflow failed.
    """
    uri = tracking_uri(config)
    client = client_of(uri)
    with explained(doing, uri):
        yield client


def missing_database(config: RunConfig) -> Path | None:
    """Return the file of a local store that is not there yet: whoever asks MLflow makes it."""
    path = tracking_uri(config).partition("sqlite:///")[2]
    return Path(path) if path and not Path(path).exists() else None


def model_of(client: Any, name: str) -> Any:
    """Return the registered model of a name; None if there is none."""
    import mlflow

    try:
        return client.get_registered_model(name)
    except mlflow.MlflowException as error:
        if error.error_code in _NOT_THERE:
            return None
        raise
