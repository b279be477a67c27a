"""Where a model is: a folder, or a name in a registry; both become a local folder.

In: what a user wrote, and the run whose MLflow store a name is looked up in. Out: a model folder.
"""

from pathlib import Path

from cil.errors import ConfigError
from pipelines import tracking
from pipelines.config import RunConfig

__all__ = ["find_model_folder", "is_registered"]


def is_registered(place: str) -> bool:
    """Tell whether a place names a model in MLflow, not a folder."""
    return place.startswith(("models:/", "runs:/"))


def find_model_folder(place: str, config: RunConfig, *, needs_store: bool = False) -> Path:
    """Return the folder of a model, downloaded if it is in MLflow.

    Args:
        place: models:/NAME@ALIAS, models:/NAME/VERSION, or a model folder.
        config: the run, for its MLflow store.
        needs_store: refuse a name when no store is set, rather than look in the run's own.

    Raises:
        ConfigError: there is no such folder or store.
        StageError: MLflow failed.
    """
    if is_registered(place):
        if needs_store and not tracking.has_store(config):
            raise ConfigError(
                f"{place} needs an MLflow store; give --tracking-uri, or set "
                "MLFLOW_TRACKING_URI (a run prints its own at the end)"
            )
        tracking.check_tracking(config)
        database = tracking.tracking_uri(config).partition("sqlite:///")[2]
        if database and not Path(database).exists():
            raise ConfigError(
                f"tracking_uri: there is no MLflow database {database}; a run prints its own at "
                "the end"
            )
        return tracking.download_model(place, tracking.tracking_uri(config))
    folder = Path(place)
    if not (folder / "model.json").exists():
        raise ConfigError(
            f"model must be models:/NAME@ALIAS or a model folder, got {place}; a run "
            "leaves its model folder in OUTPUT/register/model"
        )
    return folder
