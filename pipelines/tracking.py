"""MLflow: runs, metrics and the model registry. With `pyfunc_model.py` the only importer of mlflow.

The driver starts the run and registers the model; during training Ray's controller sends metrics by
run id (`log_rows`); workers never come here. Importing this module does not import mlflow.
"""

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil.errors import ConfigError, StageError
from pipelines.config import RunConfig, dataset_of, environment, redact_uri
from pipelines.records import Manifest
from pipelines.remote import shown_url
from pipelines.storage import check_writable, read_json, write_json

if TYPE_CHECKING:
    from pipelines.metrics_log import MetricsLog

__all__ = [
    "ALIAS",
    "MLFLOW_FOLDER",
    "RegisteredModel",
    "check_tracking",
    "download_model",
    "finish_run",
    "has_store",
    "log_evaluation",
    "log_files",
    "log_rows",
    "log_validation",
    "logged_validations",
    "register_model",
    "set_tag",
    "shown_uri",
    "start_run",
    "sync_metrics",
    "system_metrics",
    "tag_run",
    "tracking_uri",
]

ALIAS = "challenger"
"""Of the version that was registered last."""
MLFLOW_FOLDER = "mlflow"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_LOGGED_METRICS = ("loss", "grad_norm", "learning_rate", "sigma_cond")
_BATCH = 900
_TIMEOUT_S = 5
_LONGEST_TAG = 5000

_log = logging.getLogger(__name__)

RegisteredModel = dict[str, str]
"""name, version, uri (models:/NAME/VERSION), alias, run_id."""


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
        ConfigError: unknown kind of URI, no server there, or a place that cannot be written.
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

    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=_TIMEOUT_S)
        problem = None if answer.ok else f"it answered {answer.status_code}"
    except requests.RequestException as error:
        problem = f"{type(error).__name__}"
    if problem:
        raise ConfigError(
            f"tracking.uri: no MLflow server at {shown} ({problem}); start it with "
            "`mlflow server`, or leave tracking.uri empty for a local sqlite store"
        )


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
        raise ConfigError(
            f"tracking.uri: {path} cannot be used as a database: {error}; choose another file"
        ) from error


def _check_database(uri: str, shown: str) -> None:
    import sqlalchemy

    try:
        sqlalchemy.create_engine(uri).connect().close()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        reason = redact_uri(str(error).splitlines()[0])
        raise ConfigError(
            f"tracking.uri: cannot connect to {shown}: {reason}; check the address and the driver"
        ) from error


def _client(uri: str) -> Any:
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
def _explained(doing: str, uri: str) -> Iterator[None]:
    """Turn MLflow's errors into one that says what was being done and where."""
    import mlflow
    import requests

    try:
        yield
    except (mlflow.MlflowException, requests.RequestException) as error:
        reason = redact_uri(str(error).splitlines()[0])
        raise StageError(
            f"MLflow at {redact_uri(uri)} failed while {doing}: {reason}; when it works again, run "
            "the same command to go on"
        ) from error


def start_run(config: RunConfig, folder: Path, manifest: Manifest, identity: str) -> str:
    """Create the MLflow run of a training, or return the one that this training already has.

    Args:
        config: the run; its settings become parameters.
        folder: the training folder, where the run id is kept.
        manifest: the data set, logged as the run's input.
        identity: hash of the training; another one gets another run.

    Returns:
        The run id.

    Raises:
        StageError: MLflow failed.
    """
    uri = tracking_uri(config)
    client = _client(uri)
    import mlflow

    kept = folder / "mlflow_run.json"
    with _explained("starting the run", uri):
        if kept.exists():
            before = read_json(kept)
            same = before["identity"] == identity and before["uri"] == redact_uri(uri)
            if same and _reopen(client, str(before["run_id"])):
                return str(before["run_id"])
        experiment_id = _experiment(client, config, uri)
        run = client.create_run(
            experiment_id,
            run_name=f"train-{identity[:12]}",
            tags={
                "train_identity": identity,
                "manifest_fingerprint": manifest.fingerprint,
                "seed": str(config.seed),
            },
        )
        run_id = str(run.info.run_id)
        parameters = [mlflow.entities.Param(k, str(v)[:500]) for k, v in _parameters(config)]
        client.log_batch(run_id, params=parameters)
        _log_dataset(client, run_id, config, manifest)
    write_json(kept, {"run_id": run_id, "identity": identity, "uri": redact_uri(uri)})
    return run_id


def _reopen(client: Any, run_id: str) -> bool:
    """Set a run to running again; False if it was deleted in the meantime."""
    import mlflow

    try:
        client.update_run(run_id, status="RUNNING")
    except mlflow.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise
    return True


def _experiment(client: Any, config: RunConfig, uri: str) -> str:
    name = config.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    database = uri.partition("sqlite:///")[2]
    if database:  # without a server there is no default place for artifacts but the current folder
        location = (Path(database).resolve().parent / "artifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def _parameters(config: RunConfig) -> list[tuple[str, Any]]:
    """Flatten the settings that decide the model; places and secrets are left out."""
    flat: list[tuple[str, Any]] = [("seed", config.seed)]
    for section, values in asdict(config).items():
        if isinstance(values, dict) and section not in ("tracking", "output", "cluster"):
            flat += [(f"{section}.{key}", value) for key, value in values.items()]
    return flat


def _log_dataset(client: Any, run_id: str, config: RunConfig, manifest: Manifest) -> None:
    import mlflow

    source = json.dumps({"uri": shown_url(dataset_of(config))})
    dataset = mlflow.entities.Dataset(
        name=Path(config.data.videos).name or "videos",
        digest=manifest.fingerprint[:36],  # MLflow's limit
        source_type="local",
        source=source,
        profile=json.dumps(manifest.totals),
    )
    tag = mlflow.entities.InputTag("mlflow.data.context", "training")
    client.log_inputs(run_id, [mlflow.entities.DatasetInput(dataset, tags=[tag])])


def log_rows(uri: str, run_id: str, rows: list[dict[str, float]]) -> bool:
    """Send rows of training metrics; a failure is logged and returned, never raised.

    The rows are in the metrics file already and `sync_metrics` sends what is missing, so a tracking
    server that is away does not stop a training.

    Returns:
        Whether all of it was sent.
    """
    client = _client(uri)
    import mlflow
    import requests

    now = int(time.time() * 1000)
    metrics = [
        mlflow.entities.Metric(name, row[name], now, int(row["step"]))
        for row in rows
        for name in _LOGGED_METRICS
    ]
    try:
        for start in range(0, len(metrics), _BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
    except (mlflow.MlflowException, requests.RequestException) as error:
        reason = redact_uri(str(error))
        _log.warning("metrics kept for later, MLflow at %s failed: %s", redact_uri(uri), reason)
        return False
    return True


def log_validation(uri: str, run_id: str, record: Mapping[str, Any], folder: Path) -> bool:
    """Send the metrics and files of a validation, unless its step is there; never raises.

    Args:
        uri: tracking URI.
        run_id: the training's run.
        record: ``step`` and ``metrics``.
        folder: its files become artifacts in ``validation/`` and the folder's name.

    Returns:
        Whether all of it is there now.
    """

    def send(client: Any) -> None:
        import mlflow

        step, now = int(record["step"]), int(time.time() * 1000)
        if step in _logged_validations(client, run_id):
            return
        client.log_artifacts(run_id, str(folder), artifact_path=f"validation/{folder.name}")
        metrics = [
            mlflow.entities.Metric(name, float(value), now, step)
            for name, value in record["metrics"].items()
        ]
        client.log_batch(run_id, metrics=metrics)

    return _sent(uri, send, f"validation of step {record['step']}")


def log_evaluation(
    uri: str, run_id: str, measures: Mapping[str, float], paths: Iterable[Path]
) -> bool:
    """Send the measures and files of an evaluation; never raises.

    Args:
        uri: tracking URI.
        run_id: the training's run.
        measures: by name; each becomes a metric ``eval_NAME``.
        paths: files, which become artifacts in ``evaluation/``.

    Returns:
        Whether all of it is there now.
    """

    def send(client: Any) -> None:
        import mlflow

        now = int(time.time() * 1000)
        for path in paths:
            client.log_artifact(run_id, str(path), artifact_path="evaluation")
        metrics = [
            mlflow.entities.Metric(f"eval_{name}", float(value), now, 0)
            for name, value in measures.items()
        ]
        client.log_batch(run_id, metrics=metrics)

    return _sent(uri, send, "evaluation")


def logged_validations(config: RunConfig, run_id: str) -> set[int]:
    """Return the steps whose validation MLflow has.

    Raises:
        StageError: MLflow failed.
    """
    uri = tracking_uri(config)
    client = _client(uri)
    with _explained("looking for validations", uri):
        return _logged_validations(client, run_id)


def _logged_validations(client: Any, run_id: str) -> set[int]:
    return {int(metric.step) for metric in client.get_metric_history(run_id, "val_loss")}


def log_files(uri: str, run_id: str, paths: Iterable[Path]) -> bool:
    """Send files as artifacts of the training's run; returns whether all went, never raises."""

    def send(client: Any) -> None:
        for path in paths:
            client.log_artifact(run_id, str(path))

    return _sent(uri, send, "files")


def set_tag(uri: str, run_id: str, name: str, value: str) -> bool:
    """Set a tag of the training's run; returns whether it was set, never raises."""
    return _sent(uri, lambda client: client.set_tag(run_id, name, value[:_LONGEST_TAG]), "a tag")


def _sent(uri: str, send: Callable[[Any], None], what: str) -> bool:
    """Send something that may be missing: a failure is logged and returned."""
    client = _client(uri)
    import mlflow
    import requests

    try:
        send(client)
    except (mlflow.MlflowException, requests.RequestException, OSError) as error:
        reason = redact_uri(str(error).partition("\n")[0])
        _log.warning("%s not sent, MLflow at %s failed: %s", what, redact_uri(uri), reason)
        return False
    return True


@contextmanager
def system_metrics(config: RunConfig, run_id: str) -> Iterator[None]:
    """Record load, memory, disk, network and GPUs of this machine while the block runs.

    Args:
        config: the run; ``tracking.system_metrics_s`` is the interval, 0 records nothing.
        run_id: the training's run, which is open.
    """
    interval = config.tracking.system_metrics_s
    if not interval:
        yield
        return
    uri = tracking_uri(config)
    _client(uri)
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(
        run_id, sampling_interval=interval, resume_logging=True, tracking_uri=uri
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def sync_metrics(config: RunConfig, run_id: str, log: "MetricsLog") -> None:
    """Send the rows that MLflow does not have yet.

    Raises:
        StageError: MLflow failed.
    """
    uri = tracking_uri(config)
    client = _client(uri)
    with _explained("completing the metrics", uri):
        there = {metric.step for metric in client.get_metric_history(run_id, "loss")}
    missing = [row for row in log.rows() if int(row["step"]) not in there]
    if missing and not log_rows(uri, run_id, missing):
        raise StageError(
            f"MLflow at {redact_uri(uri)} does not take the metrics; run the same command again"
        )


def tag_run(config: RunConfig, run_id: str, name: str, text: str) -> None:
    """Put a text on a run; what is longer than a tag may be is cut.

    Raises:
        StageError: MLflow failed.
    """
    uri = tracking_uri(config)
    with _explained("tagging the run", uri):
        _client(uri).set_tag(run_id, name, text[:_LONGEST_TAG])


def finish_run(config: RunConfig, run_id: str, *, failed: bool = False) -> None:
    """Close a run."""
    uri = tracking_uri(config)
    with _explained("closing the run", uri):
        _client(uri).set_terminated(run_id, status="FAILED" if failed else "FINISHED")


def register_model(
    config: RunConfig,
    run_id: str,
    folder: Path,
    *,
    identity: str,
    input_example: Any,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    alias: str | None = ALIAS,
) -> RegisteredModel:
    """Log a model folder as pyfunc by models-from-code, register it and give it the alias.

    Args:
        config: the run.
        run_id: MLflow run the model came from.
        folder: complete model folder.
        identity: hash of the model; a version that has it already is returned, not made again.
        input_example: (H, W, 3) uint8 image.
        tags: tags of the version.
        metrics: logged to the run.
        alias: taken from the version that had it; None leaves the aliases as they are.

    Returns:
        Name, version, URI and alias, which is empty for None.

    Raises:
        StageError: MLflow failed.
    """
    uri, name = tracking_uri(config), config.tracking.model_name
    client = _client(uri)
    import mlflow

    with _explained("registering the model", uri), _store_of_process(uri):
        version = _find_version(client, name, identity)
        if version is None:
            for key, value in metrics.items():
                client.log_metric(run_id, key, value)
            with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # on type hints, see `_client`
                logged = _log_model(folder, input_example)
            if not client.search_registered_models(f"name='{name}'"):
                client.create_registered_model(name)
            made = client.create_model_version(
                name,
                logged.model_uri,
                run_id=run_id,
                tags={**tags, "model_identity": identity},
                model_id=logged.model_id,
            )
            version = str(made.version)
        if alias is not None:
            client.set_registered_model_alias(name, alias, version)
    return {
        "name": name,
        "version": version,
        "uri": f"models:/{name}/{version}",
        "alias": alias or "",
        "run_id": run_id,
    }


@contextmanager
def _store_of_process(uri: str) -> Iterator[None]:
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


def _find_version(client: Any, name: str, identity: str) -> str | None:
    for found in client.search_model_versions(f"name='{name}'"):
        if found.tags.get("model_identity") == identity:
            return str(found.version)
    return None


def _log_model(folder: Path, input_example: Any) -> Any:
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    import cil

    defaults = read_json(folder / "sampling.json")
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, 3))]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
        params=ParamSchema(
            [
                ParamSpec("seed", "long", 0),
                ParamSpec("start_time", "double", float(defaults["start_time"])),
                ParamSpec("num_steps", "long", int(defaults["num_steps"])),
                ParamSpec("analytic_init", "boolean", bool(defaults["analytic_init"])),
            ]
        ),
    )
    assert cil.__file__
    return mlflow.pyfunc.log_model(
        name="model",
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        artifacts={"model": str(folder)},
        code_paths=[str(Path(cil.__file__).parent)],
        signature=signature,
        input_example=input_example,
        pip_requirements=_serving_requirements(),
    )


def _serving_requirements() -> list[str]:
    """Pin what loading and sampling need, as installed here."""
    from importlib.metadata import version

    names = ("torch", "diffusers", "transformers", "safetensors", "numpy", "mlflow")
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def download_model(uri: str, store: str) -> Path:
    """Fetch a registered model and return its model folder.

    Args:
        uri: models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN/model.
        store: tracking URI.

    Raises:
        StageError: there is no such model, or MLflow failed.
    """
    _client(store)
    import mlflow

    try:
        with _explained(f"fetching {uri}", store), _store_of_process(store):
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except StageError as error:
        code = getattr(error.__cause__, "error_code", None)
        if code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise StageError(
                f"there is no {uri} in {redact_uri(store)}; check the name, the alias and the store"
            ) from error
        raise
    found = folder / "artifacts" / "model"
    if not (found / "model.json").exists():
        raise StageError(f"{uri} is not a model of this project; it has no artifacts/model folder")
    return found
