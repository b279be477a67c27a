"""The model registry: a model folder becomes a version, with tags and an alias, and comes back."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cil.errors import StageError
from pipelines.config import RunConfig, redact_uri
from pipelines.source_commit import COMMIT_TAG, DIRTY_TAG
from pipelines.storage import read_json
from pipelines.tracking.client import client_of, explained, store_of_process
from pipelines.tracking.store import tracking_uri

__all__ = ["ALIAS", "RegisteredModel", "download_model", "register_model"]

ALIAS = "challenger"
"""Of the version that was registered last."""

RegisteredModel = dict[str, str]
"""name, version, uri (models:/NAME/VERSION), alias, run_id."""


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
        tags: tags of the version, which also gets the commit that the run began with.
        metrics: logged to the run.
        alias: taken from the version that had it; None leaves the aliases as they are.

    Returns:
        Name, version, URI and alias, which is empty for None.

    Raises:
        StageError: MLflow failed.
    """
    uri, name = tracking_uri(config), config.tracking.model_name
    client = client_of(uri)
    import mlflow

    with explained("registering the model", uri), store_of_process(uri):
        version = _find_version(client, name, identity)
        if version is None:
            for key, value in metrics.items():
                client.log_metric(run_id, key, value)
            with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # on type hints, see `client_of`
                logged = _log_model(folder, input_example)
            if not client.search_registered_models(f"name='{name}'"):
                client.create_registered_model(name)
            made = client.create_model_version(
                name,
                logged.model_uri,
                run_id=run_id,
                tags={**_commit_of(client, run_id), **tags, "model_identity": identity},
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


def _commit_of(client: Any, run_id: str) -> dict[str, str]:
    known = client.get_run(run_id).data.tags
    return {name: known[name] for name in (COMMIT_TAG, DIRTY_TAG) if name in known}


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
        python_model=str(Path(__file__).parents[1] / "pyfunc_model.py"),
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


def download_model(uri: str, store: str, into: Path | None = None) -> Path:
    """Fetch a registered model and return its model folder.

    Args:
        uri: models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN/model.
        store: tracking URI.
        into: existing folder for a copy, which is the caller's to remove; None takes a temporary
            one of MLflow's, which stays, or the store's own folder if it is on this machine.

    Raises:
        StageError: there is no such model, or MLflow failed.
    """
    client_of(store)
    import mlflow

    place = None if into is None else str(into.resolve())
    try:
        with explained(f"fetching {uri}", store), store_of_process(store):
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=place))
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
