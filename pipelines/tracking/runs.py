"""MLflow runs: one for each training, with its settings, its data set and files."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig, dataset_of, redact_uri
from pipelines.records import Manifest
from pipelines.remote import shown_url
from pipelines.source_commit import source_commit
from pipelines.storage import read_json, write_json
from pipelines.tracking.client import client_of, explained, sent
from pipelines.tracking.store import tracking_uri

__all__ = ["artifacts_of", "finish_run", "has_run", "log_files", "set_tag", "start_run", "tag_run"]

_LONGEST_TAG = 5000


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
    client = client_of(uri)
    import mlflow

    kept = folder / "mlflow_run.json"
    with explained("starting the run", uri):
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
                **source_commit(),
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


def has_run(config: RunConfig, run_id: str) -> bool:
    """Tell whether the store has a run, and it was not deleted.

    Raises:
        StageError: MLflow failed.
    """
    uri = tracking_uri(config)
    client = client_of(uri)
    import mlflow

    with explained("looking for the run", uri):
        try:
            found = client.get_run(run_id)
        except mlflow.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
    return bool(found.info.lifecycle_stage == "active")


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
            shown = {key: shown_url(v) if isinstance(v, str) else v for key, v in values.items()}
            flat += [(f"{section}.{key}", value) for key, value in shown.items()]
    return flat


def _log_dataset(client: Any, run_id: str, config: RunConfig, manifest: Manifest) -> None:
    import mlflow

    source = json.dumps({"uri": shown_url(dataset_of(config))})
    dataset = mlflow.entities.Dataset(
        name=Path(shown_url(config.data.videos)).name or "videos",
        digest=manifest.fingerprint[:36],  # MLflow's limit
        source_type="local",
        source=source,
        profile=json.dumps(manifest.totals),
    )
    tag = mlflow.entities.InputTag("mlflow.data.context", "training")
    client.log_inputs(run_id, [mlflow.entities.DatasetInput(dataset, tags=[tag])])


def log_files(uri: str, run_id: str, paths: Iterable[Path]) -> bool:
    """Send files as artifacts of the training's run; returns whether all went, never raises."""

    def send(client: Any) -> None:
        for path in paths:
            client.log_artifact(run_id, str(path))

    return sent(uri, send, "files")


def artifacts_of(config: RunConfig, run_id: str) -> list[str]:
    """List what a run holds at its top, folders with a slash; empty where that cannot be said."""
    found: list[str] = []

    def look(client: Any) -> None:
        listed = client.list_artifacts(run_id)
        found.extend(f"{item.path}/" if item.is_dir else item.path for item in listed)

    sent(tracking_uri(config), look, "the question for files")
    return sorted(found)


def set_tag(uri: str, run_id: str, name: str, value: str) -> bool:
    """Set a tag of the training's run; returns whether it was set, never raises."""
    return sent(uri, lambda client: client.set_tag(run_id, name, value[:_LONGEST_TAG]), "a tag")


def tag_run(config: RunConfig, run_id: str, name: str, text: str) -> None:
    """Put a text on a run; what is longer than a tag may be is cut.

    Raises:
        StageError: MLflow failed.
    """
    uri = tracking_uri(config)
    with explained("tagging the run", uri):
        client_of(uri).set_tag(run_id, name, text[:_LONGEST_TAG])


def finish_run(config: RunConfig, run_id: str, *, failed: bool = False) -> None:
    """Close a run."""
    uri = tracking_uri(config)
    with explained("closing the run", uri):
        client_of(uri).set_terminated(run_id, status="FAILED" if failed else "FINISHED")
