"""What MLflow must have of a training that is done, and what it does not have yet.

In: the training folder with its report. Out: metrics, load, validations, picture and warnings in
the training's MLflow run. While something is missing there, ``train/unsent.json`` says so, and the
next `cil train`, `cil run`, `cil retrain` or `cil register` begins by sending it.
"""

from pathlib import Path

from cil.errors import StageError
from pipelines import tracking
from pipelines.config import RunConfig, redact_uri
from pipelines.first_batch import FIRST_BATCH_FILE
from pipelines.metrics_log import MetricsLog
from pipelines.progress import console
from pipelines.report import RunReport
from pipelines.storage import read_json, write_json
from pipelines.validation import read_history, step_folder

__all__ = ["UNSENT_FILE", "deliver", "deliver_unsent", "load_log", "owe", "training_log"]

UNSENT_FILE = "unsent.json"


def training_log(folder: Path, identity: str) -> MetricsLog:
    """Return the metrics file of a training."""
    return MetricsLog(folder / f"metrics-{identity[:12]}.jsonl")


def load_log(folder: Path, identity: str) -> MetricsLog:
    """Return the file of the machine's load during a training."""
    return MetricsLog(folder / f"load-{identity[:12]}.jsonl")


def owe(config: RunConfig, folder: Path, *, identity: str, run_id: str) -> None:
    """Note that a training is done whose report is about to be written, and not delivered."""
    store = redact_uri(tracking.tracking_uri(config))
    write_json(folder / UNSENT_FILE, {"store": store, "identity": identity, "run_id": run_id})


def deliver(config: RunConfig, folder: Path) -> None:
    """Send what MLflow does not have of the training that the folder's report is of.

    Args:
        config: the run.
        folder: the training folder.

    Raises:
        StageError: MLflow failed; what is missing stays noted.
    """
    report = RunReport.load(folder / "report.json")
    identity, run_id = str(report.inputs["identity"]), str(report.outputs["mlflow_run_id"])
    log = training_log(folder, identity)
    try:
        tracking.sync_metrics(config, run_id, log, load_log(folder, identity))
        _send_validations(config, folder, identity, run_id)
        _send_texts(config, report, run_id)
        tracking.finish_run(config, run_id)
    except StageError as error:
        raise StageError(
            f"training is done and its model is in {report.outputs['model']}, but MLflow has not "
            f"all of its metrics: {error}. They are in {log.path}; the same command sends what is "
            "missing and trains nothing again"
        ) from error
    (folder / UNSENT_FILE).unlink(missing_ok=True)


def deliver_unsent(config: RunConfig, folder: Path) -> None:
    """Send what an earlier command could not, if it was meant for the same store.

    Raises:
        StageError: MLflow failed.
    """
    if not (folder / UNSENT_FILE).exists() or not (folder / "report.json").exists():
        return
    note, done = read_json(folder / UNSENT_FILE), read_json(folder / "report.json")
    store = redact_uri(tracking.tracking_uri(config))
    if note["store"] != store or note["identity"] != done["inputs"]["identity"]:
        return
    if not tracking.has_run(config, note["run_id"]):
        console.print(f"warning: {store} has no run {note['run_id']} any more", markup=False)
        (folder / UNSENT_FILE).unlink()
        return
    console.print("train: sending what MLflow has not got of the last training")
    deliver(config, folder)


def _send_validations(config: RunConfig, folder: Path, identity: str, run_id: str) -> None:
    uri = tracking.tracking_uri(config)
    history = read_history(folder, identity)
    there = tracking.logged_validations(config, run_id) if history else set()
    for record in history:
        step = record["step"]
        if step in there:
            continue
        if not tracking.log_validation(uri, run_id, record, step_folder(folder, step)):
            raise StageError(f"the validation of step {step} was not sent")


def _send_texts(config: RunConfig, report: RunReport, run_id: str) -> None:
    """Send the picture and the warnings; what is there already is replaced by the same."""
    outputs, uri = report.outputs, tracking.tracking_uri(config)
    picture = outputs.get("first_batch")
    if picture and not tracking.log_files(uri, run_id, [Path(picture)]):
        raise StageError(f"{FIRST_BATCH_FILE} was not sent")
    for text in outputs.get("motion_collapse", [])[-1:]:
        tracking.tag_run(config, run_id, "motion_collapse", text)
    if "warnings" in outputs:
        text = Path(outputs["warnings"]).read_text(encoding="utf-8")
        tracking.tag_run(config, run_id, "warnings", text)
