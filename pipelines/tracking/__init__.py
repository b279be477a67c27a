"""MLflow: runs, metrics and the model registry. With `pyfunc_model.py` the only importer of mlflow.

The driver starts the run and registers the model; during training Ray's controller sends metrics by
run id (`MetricsSender`); workers never come here. Importing this package does not import mlflow.
"""

from pipelines.tracking.machine_load import record_load
from pipelines.tracking.metrics import (
    log_evaluation,
    log_validation,
    logged_validations,
    sync_metrics,
)
from pipelines.tracking.registry import ALIAS, RegisteredModel, download_model, register_model
from pipelines.tracking.runs import (
    artifacts_of,
    finish_run,
    has_run,
    log_files,
    set_tag,
    start_run,
    tag_run,
)
from pipelines.tracking.sender import MetricsSender
from pipelines.tracking.store import (
    MLFLOW_FOLDER,
    check_tracking,
    has_store,
    shown_uri,
    tracking_uri,
)

__all__ = [
    "ALIAS",
    "MLFLOW_FOLDER",
    "MetricsSender",
    "RegisteredModel",
    "artifacts_of",
    "check_tracking",
    "download_model",
    "finish_run",
    "has_run",
    "has_store",
    "log_evaluation",
    "log_files",
    "log_validation",
    "logged_validations",
    "record_load",
    "register_model",
    "set_tag",
    "shown_uri",
    "start_run",
    "sync_metrics",
    "tag_run",
    "tracking_uri",
]
