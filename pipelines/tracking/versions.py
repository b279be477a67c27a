"""Versions of the registered model: their tags, their aliases, and the history of the aliases.

The history stands as tags of the registered model, one entry each, so that it lives where the
aliases live. MLflow has no compare-and-swap: whoever moves aliases holds a lock.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cil.errors import StageError
from pipelines.config import RunConfig
from pipelines.tracking.client import client_of, explained
from pipelines.tracking.store import tracking_uri

__all__ = [
    "ModelVersion",
    "add_history",
    "aliased",
    "describe_version",
    "history",
    "move_alias",
    "remove_alias",
    "tag_version",
    "version_of",
    "versions_of",
]

_ENTRY = "history."
_LONGEST_TAG = 5000
# A server with users says PERMISSION_DENIED of what is not there, but to administrators.
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelVersion:
    """One version of a registered model."""

    name: str
    version: str
    run_id: str
    """MLflow run of its training."""
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    created: datetime
    """UTC."""

    @property
    def uri(self) -> str:
        """models:/NAME/VERSION."""
        return f"models:/{self.name}/{self.version}"


@contextmanager
def _registry(config: RunConfig, doing: str) -> Iterator[Any]:
    uri = tracking_uri(config)
    client = client_of(uri)
    with explained(doing, uri):
        yield client


def versions_of(config: RunConfig) -> list[ModelVersion]:
    """Return all versions of the run's registered model, the newest first; none if it is not there.

    Raises:
        StageError: MLflow failed.
    """
    name = config.tracking.model_name
    with _registry(config, "listing versions") as client:
        aliases = _aliases(client, name)
        found = client.search_model_versions(f"name='{name}'")
    versions = [_version(each, aliases) for each in found]
    return sorted(versions, key=lambda each: int(each.version), reverse=True)


def aliased(config: RunConfig, alias: str) -> ModelVersion | None:
    """Return the version that has an alias; None if none has it.

    Raises:
        StageError: MLflow failed.
    """
    name = config.tracking.model_name
    with _registry(config, f"looking for the alias {alias}") as client:
        aliases = _aliases(client, name)
        if alias not in aliases:
            return None
        return _version(client.get_model_version(name, aliases[alias]), aliases)


def version_of(config: RunConfig, version: str) -> ModelVersion:
    """Return a version by its number.

    Raises:
        StageError: there is none, or MLflow failed.
    """
    for each in versions_of(config):
        if each.version == version:
            return each
    name = config.tracking.model_name
    raise StageError(f"{name} has no version {version}; `cil status` lists what there is")


def move_alias(config: RunConfig, alias: str, version: str) -> None:
    """Give an alias to a version; the one that had it loses it.

    Raises:
        StageError: MLflow failed.
    """
    with _registry(config, f"moving the alias {alias}") as client:
        client.set_registered_model_alias(config.tracking.model_name, alias, version)


def remove_alias(config: RunConfig, alias: str) -> None:
    """Take an alias from whatever version has it.

    Raises:
        StageError: MLflow failed.
    """
    name = config.tracking.model_name
    with _registry(config, f"removing the alias {alias}") as client:
        if alias in _aliases(client, name):
            client.delete_registered_model_alias(name, alias)


def tag_version(config: RunConfig, version: str, tags: Mapping[str, str]) -> None:
    """Set tags of a version; what is longer than a tag may be is cut.

    Raises:
        StageError: MLflow failed.
    """
    with _registry(config, "tagging a version") as client:
        for key, value in tags.items():
            client.set_model_version_tag(
                config.tracking.model_name, version, key, value[:_LONGEST_TAG]
            )


def describe_version(config: RunConfig, version: str, text: str) -> None:
    """Set the description of a version, in markdown.

    Raises:
        StageError: MLflow failed.
    """
    with _registry(config, "describing a version") as client:
        client.update_model_version(config.tracking.model_name, version, description=text)


def add_history(config: RunConfig, entry: Mapping[str, Any]) -> None:
    """Append what was done with the aliases; the entry must be small.

    Raises:
        StageError: MLflow failed.
    """
    number = len(history(config))
    text = json.dumps(dict(entry), sort_keys=True)
    if len(text) > _LONGEST_TAG:
        raise StageError(f"an entry of the history has {len(text)} signs, at most {_LONGEST_TAG}")
    with _registry(config, "writing the history") as client:
        name = config.tracking.model_name
        client.set_registered_model_tag(name, f"{_ENTRY}{number:06d}", text)


def history(config: RunConfig) -> list[dict[str, Any]]:
    """Return what was done with the aliases, the oldest first.

    Raises:
        StageError: MLflow failed.
    """
    with _registry(config, "reading the history") as client:
        model = _model(client, config.tracking.model_name)
    tags = {} if model is None else model.tags
    return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(_ENTRY)]


def _model(client: Any, name: str) -> Any:
    import mlflow

    try:
        return client.get_registered_model(name)
    except mlflow.MlflowException as error:
        if error.error_code in _NOT_THERE:
            return None
        raise


def _aliases(client: Any, name: str) -> dict[str, str]:
    """Map aliases to versions; the number is an int in a database and text over HTTP."""
    model = _model(client, name)
    return {} if model is None else {key: str(value) for key, value in model.aliases.items()}


def _version(found: Any, aliases: Mapping[str, str]) -> ModelVersion:
    version = str(found.version)
    return ModelVersion(
        name=found.name,
        version=version,
        run_id=str(found.run_id),
        tags=dict(found.tags),
        aliases=tuple(sorted(key for key, value in aliases.items() if value == version)),
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
    )
