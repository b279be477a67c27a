"""Which MLflow store a run uses, and whether it can be reached.

Imports mlflow only to ask a server that wants a password.
"""

import re
from pathlib import Path
from typing import Any

from cil.errors import ConfigError, StageError
from pipelines.config import RunConfig, environment, redact_uri
from pipelines.storage import check_writable
from pipelines.tracking.client import client_of

__all__ = ["MLFLOW_FOLDER", "check_tracking", "has_store", "shown_uri", "tracking_uri"]

MLFLOW_FOLDER = "mlflow"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_TIMEOUT_S = 5
_AWAY_STATUS = 500
_TOO_MANY = 429
_OF_THE_USER = re.compile(
    r"authentication failed|no password|does not exist|pg_hba|access denied|unknown database"
    r"|login failed",
    re.IGNORECASE,
)
_AWAY = re.compile(r"failed with exception|error code 5\d\d|too many", re.IGNORECASE)
_QUESTION = "api/2.0/mlflow/experiments/search?max_results=1"


def tracking_uri(config: RunConfig) -> str:
    """Return the tracking URI: configured, else MLFLOW_TRACKING_URI, else sqlite in the output."""
    uri = config.tracking.uri or environment("MLFLOW_TRACKING_URI")
    if uri:
        return uri
    path = (Path(config.output.dir) / MLFLOW_FOLDER / "mlflow.db").resolve()
    return f"sqlite:///{path}"


def has_store(config: RunConfig) -> bool:
    """Tell whether a tracking URI was given, by setting or by environment."""
    return bool(config.tracking.uri or environment("MLFLOW_TRACKING_URI"))


def shown_uri(config: RunConfig) -> str:
    """Return the tracking URI without its password, for people and files."""
    return redact_uri(tracking_uri(config))


def check_tracking(config: RunConfig) -> None:
    """Check that the tracking store can be reached, without writing to it.

    Raises:
        ConfigError: what the user must change: an unknown kind of URI, an address that is none, a
            wrong password, or a place that cannot be written.
        StageError: a server or database that does not answer, or is busy.
    """
    uri = tracking_uri(config)
    shown = redact_uri(uri)
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme in ("http", "https"):
        _check_server(uri, shown)
    elif scheme == "sqlite":
        _check_sqlite(uri)
    elif scheme in _DATABASES:
        _check_database(uri, shown)
    else:
        raise ConfigError(
            f"tracking.uri must be http(s)://, sqlite:/// or another database URI, got {shown!r}; "
            "MLflow no longer records runs in plain folders, use sqlite:///FOLDER/mlflow.db"
        )


def _check_server(uri: str, shown: str) -> None:
    import requests

    kind: type[ConfigError] | type[StageError] = StageError
    problem = None
    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=_TIMEOUT_S)
        if not answer.ok:
            problem = f"it answered {answer.status_code}"
            away = answer.status_code >= _AWAY_STATUS or answer.status_code == _TOO_MANY
            kind = StageError if away else ConfigError
    except requests.RequestException as error:
        problem = type(error).__name__
        # of its address, or of its certificate
        if isinstance(error, ValueError | requests.exceptions.SSLError):
            kind = ConfigError
    if problem:
        raise kind(
            f"tracking.uri: no MLflow server at {shown} ({problem}); start it with "
            "`mlflow server`, or leave tracking.uri empty for a local sqlite store"
        )
    _check_user(uri, shown)


def _check_user(uri: str, shown: str) -> None:
    """Ask something that needs a user where the server has users; MLflow's client knows ours."""
    import requests

    question = f"{uri.rstrip('/')}/{_QUESTION}"
    try:
        asks = requests.get(question, auth=_no_auth, timeout=_TIMEOUT_S).status_code in (401, 403)
    except requests.RequestException:
        return  # what is wrong will be said by what is asked in earnest
    if not asks:
        return
    client = client_of(uri)
    import mlflow

    try:
        client.search_experiments(max_results=1)
    except mlflow.MlflowException as error:
        reason = redact_uri(str(error).partition("\n")[0].partition(". Response body")[0])
        if _AWAY.search(reason):
            raise StageError(
                f"tracking.uri: MLflow at {shown} does not answer ({reason}); when it works again, "
                "run the same command"
            ) from error
        raise ConfigError(
            f"tracking.uri: MLflow at {shown} refuses the user name or the password ({reason}); "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        ) from error


def _no_auth(request: Any) -> Any:
    """Keep requests from looking for a password by itself, as it does in ~/.netrc."""
    return request


def _check_sqlite(uri: str) -> None:
    """Check the place of a local database without making it."""
    import sqlite3
    from contextlib import closing

    database = uri.partition("sqlite:///")[2]
    if not database or database == ":memory:":
        raise ConfigError(
            f"tracking.uri must name a file, got {uri!r}; use sqlite:///FOLDER/mlflow.db"
        )
    path = Path(database)
    check_writable(path.parent, "tracking.uri")
    if not path.exists():
        return
    try:
        # as_uri: sqlite opens what is there and makes nothing
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as there:
            there.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        if "locked" in str(error) or "busy" in str(error):
            raise StageError(
                f"tracking.uri: {path} is busy: {error}; wait for the program that uses it"
            ) from error
        raise ConfigError(
            f"tracking.uri: {path} cannot be used as a database: {error}; choose another file"
        ) from error


def _check_database(uri: str, shown: str) -> None:
    import sqlalchemy

    try:
        sqlalchemy.create_engine(uri).connect().close()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        reason = redact_uri(str(error).splitlines()[0])
        away = isinstance(error, sqlalchemy.exc.OperationalError)
        kind = StageError if away and not _OF_THE_USER.search(str(error)) else ConfigError
        raise kind(
            f"tracking.uri: cannot connect to {shown}: {reason}; check the address and the driver"
        ) from error
