"""Metrics of a training in MLflow: sent as they come, completed at the end, none of them twice."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import RunConfig
from pipelines.tracking.client import client_of, explained, sent
from pipelines.tracking.store import tracking_uri

if TYPE_CHECKING:
    from pipelines.metrics_log import MetricsLog

__all__ = [
    "LOAD_PREFIX",
    "log_evaluation",
    "log_validation",
    "logged_validations",
    "send_missing_rows",
    "send_rows",
    "sync_metrics",
]

_LOGGED_METRICS = ("loss", "grad_norm", "learning_rate", "sigma_cond")
LOAD_PREFIX = "system/"
"""Of the names of a machine's load."""
_MOST_AT_ONCE = 900


def send_rows(client: Any, run_id: str, rows: Sequence[Mapping[str, float]]) -> None:
    """Send rows of metrics; sending a row twice is the same as once.

    MLflow knows a metric by run, name, step, value and time, and a row has the time of its step:
    what arrived although its answer was lost is not stored again.

    Raises:
        MlflowException: or an error of requests; some rows may be there.
    """
    now = time.time()
    batch: list[Any] = []
    for row in rows:
        metrics = _metrics(row, now)
        if len(batch) + len(metrics) > _MOST_AT_ONCE:
            client.log_batch(run_id, metrics=batch)
            batch = []
        batch += metrics
    if batch:
        client.log_batch(run_id, metrics=batch)


def send_missing_rows(client: Any, run_id: str, rows: Sequence[Mapping[str, float]]) -> None:
    """Send those rows whose steps MLflow does not have.

    Raises:
        MlflowException: or an error of requests; some rows may be there.
    """
    if not rows:
        return
    first = _metrics(rows[0], 0.0)[0].key
    there = {metric.step for metric in client.get_metric_history(run_id, first)}
    send_rows(client, run_id, [row for row in rows if int(row["step"]) not in there])


def _metrics(row: Mapping[str, float], now: float) -> list[Any]:
    import mlflow

    when = int(1000 * row.get("time_s", now))
    return [
        mlflow.entities.Metric(name, value, when, int(row["step"]))
        for name, value in row.items()
        if name in _LOGGED_METRICS or name.startswith(LOAD_PREFIX)
    ]


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


def sync_metrics(config: RunConfig, run_id: str, *logs: "MetricsLog") -> None:
    """Send the rows that MLflow does not have yet.

    Raises:
        StageError: MLflow failed.
    """
    uri = tracking_uri(config)
    client = client_of(uri)
    with explained("completing the metrics", uri):
        for log in logs:
            send_missing_rows(client, run_id, log.rows())


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
