"""Metrics of a training in MLflow: sent as they come, completed at the end, none of them twice."""

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil.errors import StageError
from pipelines.config import RunConfig, redact_uri
from pipelines.tracking.client import client_of, explained, sent
from pipelines.tracking.store import tracking_uri

if TYPE_CHECKING:
    from pipelines.metrics_log import MetricsLog

__all__ = ["log_evaluation", "log_rows", "log_validation", "logged_validations", "sync_metrics"]

_LOGGED_METRICS = ("loss", "grad_norm", "learning_rate", "sigma_cond")
_BATCH = 900

_log = logging.getLogger(__name__)


def log_rows(uri: str, run_id: str, rows: list[dict[str, float]]) -> bool:
    """Send rows of training metrics; a failure is logged and returned, never raised.

    The rows are in the metrics file already and `sync_metrics` sends what is missing, so a tracking
    server that is away does not stop a training.

    Returns:
        Whether all of it was sent.
    """
    client = client_of(uri)
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

    return sent(uri, send, f"validation of step {record['step']}")


def logged_validations(config: RunConfig, run_id: str) -> set[int]:
    """Return the steps whose validation MLflow has.

    Raises:
        StageError: MLflow failed.
    """
    uri = tracking_uri(config)
    client = client_of(uri)
    with explained("looking for validations", uri):
        return _logged_validations(client, run_id)


def _logged_validations(client: Any, run_id: str) -> set[int]:
    return {int(metric.step) for metric in client.get_metric_history(run_id, "val_loss")}


def sync_metrics(config: RunConfig, run_id: str, log: "MetricsLog") -> None:
    """Send the rows that MLflow does not have yet.

    Raises:
        StageError: MLflow failed.
    """
    uri = tracking_uri(config)
    client = client_of(uri)
    with explained("completing the metrics", uri):
        there = {metric.step for metric in client.get_metric_history(run_id, "loss")}
    missing = [row for row in log.rows() if int(row["step"]) not in there]
    if missing and not log_rows(uri, run_id, missing):
        raise StageError(
            f"MLflow at {redact_uri(uri)} does not take the metrics; run the same command again"
        )


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

    return sent(uri, send, "evaluation")
