"""Versions of the registered model: their tags and their aliases.

MLflow has no compare-and-swap: whoever moves aliases holds a lock.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cil.errors import StageError
from pipelines.config import RunConfig
from pipelines.tracking.moves import history
from pipelines.tracking.registered_model import LONGEST_TAG, model_of, registry
from pipelines.tracking.runs import set_tag
from pipelines.tracking.store import tracking_uri

__all__ = [
    "ModelVersion",
    "aliased",
    "describe_version",
    "find_version",
    "history",
    "judge_version",
    "move_alias",
    "remove_alias",
    "tag_version",
    "version_of",
    "versions_of",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelVersion:
    """One version of a registered model."""

    name: str
    version: str
    run_id: str
    """MLflow run of its training; empty for a version that somebody made without one."""
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    created: datetime
    """UTC."""

    @property
    def uri(self) -> str:
        """models:/NAME/VERSION."""
        return f"models:/{self.name}/{self.version}"


def versions_of(config: RunConfig) -> list[ModelVersion]:
    """Return all versions of the run's registered model, the newest first; none if it is not there.

    Raises:
        StageError: MLflow failed.
    """
    name = config.tracking.model_name
    with registry(config, "listing versions") as client:
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
    with registry(config, f"looking for the alias {alias}") as client:
        aliases = _aliases(client, name)
        if alias not in aliases:
            return None
        return _version(client.get_model_version(name, aliases[alias]), aliases)


def version_of(config: RunConfig, version: str) -> ModelVersion:
    """Return a version by its number.

    Raises:
        StageError: there is none, or MLflow failed.
    """
    found = find_version(config, version)
    if found is None:
        name = config.tracking.model_name
        raise StageError(f"{name} has no version {version}; `cil status` lists what there is")
    return found


def find_version(config: RunConfig, version: str) -> ModelVersion | None:
    """Return a version by its number; None if there is none.

    Raises:
        StageError: MLflow failed.
    """
    return next((each for each in versions_of(config) if each.version == version), None)


def move_alias(config: RunConfig, alias: str, version: str) -> None:
    """Give an alias to a version; the one that had it loses it.

    Raises:
        StageError: MLflow failed.
    """
    with registry(config, f"moving the alias {alias}") as client:
        client.set_registered_model_alias(config.tracking.model_name, alias, version)


def remove_alias(config: RunConfig, alias: str) -> None:
    """Take an alias from whatever version has it.

    Raises:
        StageError: MLflow failed.
    """
    name = config.tracking.model_name
    with registry(config, f"removing the alias {alias}") as client:
        if alias in _aliases(client, name):
            client.delete_registered_model_alias(name, alias)


def tag_version(config: RunConfig, version: str, tags: Mapping[str, str]) -> None:
    """Set tags of a version; what is longer than a tag may be is cut.

    Raises:
        StageError: MLflow failed.
    """
    with registry(config, "tagging a version") as client:
        for key, value in tags.items():
            client.set_model_version_tag(
                config.tracking.model_name, version, key, value[:LONGEST_TAG]
            )


def judge_version(config: RunConfig, version: ModelVersion, tags: Mapping[str, str]) -> None:
    """Set what was found of a version as its tags, and before that as tags of its training's run.

    A run that is gone, or cannot be tagged, is only logged.

    Raises:
        StageError: MLflow failed.
    """
    uri = tracking_uri(config)
    if version.run_id:
        for key, value in tags.items():
            set_tag(uri, version.run_id, key, value)
    tag_version(config, version.version, tags)


def describe_version(config: RunConfig, version: str, text: str) -> None:
    """Set the description of a version, in markdown.

    Raises:
        StageError: MLflow failed.
    """
    with registry(config, "describing a version") as client:
        client.update_model_version(config.tracking.model_name, version, description=text)


def _aliases(client: Any, name: str) -> dict[str, str]:
    """Map aliases to versions; the number is an int in a database and text over HTTP."""
    model = model_of(client, name)
    return {} if model is None else {key: str(value) for key, value in model.aliases.items()}


def _version(found: Any, aliases: Mapping[str, str]) -> ModelVersion:
    version = str(found.version)
    return ModelVersion(
        name=found.name,
        version=version,
        run_id=str(found.run_id or ""),
        tags=dict(found.tags),
        aliases=tuple(sorted(key for key, value in aliases.items() if value == version)),
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
    )
