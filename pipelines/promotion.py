"""Promoting a version of the registered model to champion, and undoing it.

    challenger          what was registered last
    champion            what people use: models:/NAME@champion
    previous_champion   what a rollback returns to

Every move is a line of the model's history. The steps are in an order in which a killed command
leaves a champion in place, and the same command run again completes what is missing.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from cil.errors import ConfigError, StageError
from pipelines.config import RunConfig
from pipelines.tracking import ALIAS
from pipelines.tracking.versions import (
    ModelVersion,
    add_history,
    aliased,
    history,
    move_alias,
    remove_alias,
    tag_version,
    version_of,
    versions_of,
)

__all__ = ["CHAMPION", "GATE_TAG", "PREVIOUS", "Move", "promote", "roll_back"]

CHAMPION = "champion"
PREVIOUS = "previous_champion"
_LONGEST_TEXT = 1000
GATE_TAG = "gate"
"""Tag of a version: pending, passed, refused; or rolled back, which no scheduled run promotes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """What a promotion or rollback did."""

    action: str
    """promote or rollback."""
    version: str
    """The champion now."""
    previous: str | None
    """The champion before; None for the first one."""
    done_before: bool
    """True if it was the champion already."""


def promote(
    config: RunConfig,
    version: str,
    *,
    reason: str,
    evidence: str | None = None,
    force: bool = False,
) -> Move:
    """Make a version the champion; the one before becomes `PREVIOUS`.

    Args:
        config: the run; names model and store.
        version: number of the version.
        reason: why, for the history.
        evidence: MLflow run or file with the gate's numbers.
        force: promote a version that no gate has passed.

    Raises:
        ConfigError: no gate has passed it, and ``force`` is not given.
        StageError: there is no such version, or MLflow failed.
    """
    chosen = version_of(config, version)
    if not force and chosen.tags.get(GATE_TAG) != "passed":
        raise ConfigError(
            f"version {version} of {chosen.name} has not passed the gate "
            f"(tag {GATE_TAG}: {chosen.tags.get(GATE_TAG, 'none')}); --force promotes it anyway"
        )
    current = aliased(config, CHAMPION)
    if current is not None and current.version == version:
        _complete(config, chosen, reason=reason, evidence=evidence)
        return Move(
            action="promote", version=version, previous=_version(config, PREVIOUS), done_before=True
        )
    if current is not None:
        move_alias(config, PREVIOUS, current.version)
    move_alias(config, CHAMPION, version)
    _complete(config, chosen, reason=reason, evidence=evidence)
    previous = None if current is None else current.version
    return Move(action="promote", version=version, previous=previous, done_before=False)


def roll_back(config: RunConfig, *, reason: str) -> Move:
    """Return to the champion before; the one that leaves is tagged, so that none promotes it again.

    Args:
        config: the run; names model and store.
        reason: why, for the history.

    Raises:
        ConfigError: there is nothing to return to.
        StageError: MLflow failed.
    """
    current, previous = aliased(config, CHAMPION), aliased(config, PREVIOUS)
    name = config.tracking.model_name
    if current is None or previous is None:
        missing = CHAMPION if current is None else PREVIOUS
        raise ConfigError(f"{name} has no {missing}, so there is nothing to roll back to")
    if current.version != previous.version:
        tag_version(config, current.version, {GATE_TAG: "rolled back"})
        move_alias(config, CHAMPION, previous.version)
        leaving = current.version
    else:  # a rollback that was killed after it had moved the champion
        leaving = _left(config) or current.version
    before = _champion_before(config, previous.version)
    entries = history(config)
    if (entries[-1]["action"], entries[-1]["version"]) != ("rollback", previous.version):
        moved = {"action": "rollback", "version": previous.version, "previous": leaving}
        _record(config, {**moved, "reason": reason})
    if before is None:
        remove_alias(config, PREVIOUS)
    else:
        move_alias(config, PREVIOUS, before)
    return Move(action="rollback", version=previous.version, previous=leaving, done_before=False)


def _complete(
    config: RunConfig, chosen: ModelVersion, *, reason: str, evidence: str | None
) -> None:
    """Do what follows the move of the champion, where a killed command left it out."""
    challenger = aliased(config, ALIAS)
    if challenger is not None and challenger.version == chosen.version:
        remove_alias(config, ALIAS)
    entries = history(config)
    if not entries or entries[-1]["version"] != chosen.version:
        moved = {"action": "promote", "version": chosen.version}
        previous = _version(config, PREVIOUS)
        _record(config, {**moved, "previous": previous, "reason": reason, "evidence": evidence})


def _record(config: RunConfig, entry: dict[str, str | None]) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    cut = {key: value[:_LONGEST_TEXT] for key, value in entry.items() if value is not None}
    add_history(config, {"time": now, "previous": None, **cut})


def _version(config: RunConfig, alias: str) -> str | None:
    found = aliased(config, alias)
    return None if found is None else found.version


def _champion_before(config: RunConfig, version: str) -> str | None:
    """Return the champion that a version took over from, by the history; None if it was the first.

    Raises:
        StageError: that version is gone.
    """
    for entry in reversed(history(config)):
        if entry["action"] == "promote" and entry["version"] == version:
            before = entry["previous"]
            try:
                return None if before is None else version_of(config, before).version
            except StageError:
                return None
    return None


def _left(config: RunConfig) -> str | None:
    """Return the version that a rollback tagged last, by number."""
    for each in versions_of(config):
        if each.tags.get(GATE_TAG) == "rolled back":
            return each.version
    return None
