"""Promoting a version of the registered model to champion, and undoing it.

    challenger          what was registered last
    champion            what people use: models:/NAME@champion
    previous_champion   what a rollback returns to

Every move is a line of the model's history. It is written down before any alias moves, so that the
next command knows what a killed one has left: where the champion had moved, it completes the move,
else it takes it back. At every moment there is a champion.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cil.errors import ConfigError
from pipelines.config import RunConfig
from pipelines.tracking import ALIAS
from pipelines.tracking.moves import (
    add_history,
    begin_move,
    end_move,
    fitting,
    history,
    move_under_way,
    next_entry,
)
from pipelines.tracking.versions import (
    ModelVersion,
    aliased,
    find_version,
    judge_version,
    move_alias,
    remove_alias,
    versions_of,
)

__all__ = [
    "CHAMPION",
    "GATE_TAG",
    "PREVIOUS",
    "Move",
    "check_promotion",
    "next_rollback",
    "promote",
    "roll_back",
]

CHAMPION = "champion"
PREVIOUS = "previous_champion"
_LONGEST_TEXT = 1000
_LONGEST_MOVE = 4900
_ROLLED_BACK, _FORCED = "rolled back", "forced"
GATE_TAG = "gate"
"""Tag of a version: pending, passed, refused; rolled back, which no scheduled run promotes and no
rollback returns to; or forced, which was rolled back and then promoted by force."""


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


def check_promotion(config: RunConfig, version: str, *, force: bool = False) -> ModelVersion:
    """Return the version if it may become champion.

    Raises:
        ConfigError: there is no such version, or no gate has passed it and ``force`` is not given.
        StageError: MLflow failed.
    """
    name = config.tracking.model_name
    chosen = find_version(config, version)
    if chosen is None:
        raise ConfigError(f"{name} has no version {version}; `cil status` lists what there is")
    if not force and chosen.tags.get(GATE_TAG) != "passed":
        raise ConfigError(
            f"version {version} of {name} has not passed the gate "
            f"(tag {GATE_TAG}: {chosen.tags.get(GATE_TAG, 'none')}); --force promotes it anyway"
        )
    return chosen


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
        reason: why, for the history; cut to what fits.
        evidence: MLflow run or file with the gate's numbers.
        force: promote a version that no gate has passed.

    Raises:
        ConfigError: there is no such version, or no gate has passed it, and ``force`` is not given.
        StageError: MLflow failed.
    """
    _settle(config)
    check_promotion(config, version, force=force)
    current, before = _version(config, CHAMPION), _version(config, PREVIOUS)
    entries = history(config)
    done_before = current == version
    previous = current
    if done_before:
        previous = before if before != version else None
    if not done_before or not entries or entries[-1]["version"] != version:
        moved = {"action": "promote", "version": version, "previous": previous}
        texts = {"reason": reason} if evidence is None else {"reason": reason, "evidence": evidence}
        _do(config, {**moved, **texts}, then=None if done_before else current, was=before)
    elif _version(config, ALIAS) == version:
        remove_alias(config, ALIAS)
    return Move(action="promote", version=version, previous=previous, done_before=done_before)


def roll_back(config: RunConfig, *, reason: str) -> Move:
    """Return to the champion before; the one that leaves is tagged, so that none promotes it again.

    A version that was rolled back is never returned to: the champion before that one is. A rollback
    that was killed after it had moved the champion is completed, and nothing more.

    Args:
        config: the run; names model and store.
        reason: why, for the history; cut to what fits.

    Raises:
        ConfigError: there is nothing to return to.
        StageError: MLflow failed.
    """
    completed = _settle(config)
    if completed is not None and completed["action"] == "rollback":
        leaving, version = completed["previous"], completed["version"]
    else:
        leaving, version, then = _choice(config)
        moved = {"action": "rollback", "version": version, "previous": leaving, "reason": reason}
        _do(config, moved, then=then, was=_version(config, PREVIOUS))
    return Move(action="rollback", version=version, previous=leaving, done_before=False)


def next_rollback(config: RunConfig) -> str:
    """Return the version that `roll_back` would make champion; writes nothing.

    Raises:
        ConfigError: there is nothing to return to.
        StageError: MLflow failed.
    """
    return _choice(config)[1]


def _do(
    config: RunConfig, entry: Mapping[str, str | None], *, then: str | None, was: str | None
) -> None:
    """Write a move down, then do it.

    Args:
        config: the run; names model and store.
        entry: of the history, without its time.
        then: `PREVIOUS` after the move; None takes it away by a rollback, and leaves it as it is by
            a promotion.
        was: `PREVIOUS` before it.
    """
    texts = {key: entry[key] for key in ("reason", "evidence") if entry.get(key) is not None}
    cut = {key: str(text)[:_LONGEST_TEXT] for key, text in texts.items()}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    fits = fitting({"time": now, **entry, **cut}, ("reason", "evidence"), _LONGEST_MOVE)
    move = {"number": next_entry(config), "entry": fits, "then": then, "was": was}
    begin_move(config, move)
    _go_on(config, move)


def _go_on(config: RunConfig, move: Mapping[str, Any]) -> None:
    """Do the steps of a move; each of them may have been done before."""
    entry, then = move["entry"], move["then"]
    version, leaving = entry["version"], entry["previous"]
    promotes = entry["action"] == "promote"
    if promotes and then is not None:
        _set_previous(config, then)
    move_alias(config, CHAMPION, version)
    if promotes:
        chosen = find_version(config, version)
        if chosen is not None and chosen.tags.get(GATE_TAG) == _ROLLED_BACK:
            judge_version(config, chosen, {GATE_TAG: _FORCED})
        if _version(config, ALIAS) == version:
            remove_alias(config, ALIAS)
    else:
        left = find_version(config, leaving)
        if left is not None:
            judge_version(config, left, {GATE_TAG: _ROLLED_BACK})
        _set_previous(config, then)
    add_history(config, move["number"], entry)
    end_move(config)


def _settle(config: RunConfig) -> dict[str, Any] | None:
    """End what a killed command has left; returns the entry of a move that was completed."""
    move = move_under_way(config)
    if move is None:
        return None
    entry: dict[str, Any] = move["entry"]
    if _version(config, CHAMPION) == entry["version"]:
        _go_on(config, move)
        return entry
    _set_previous(config, move["was"])
    end_move(config)
    return None


def _set_previous(config: RunConfig, version: str | None) -> None:
    if version is None or find_version(config, version) is None:
        remove_alias(config, PREVIOUS)
    else:
        move_alias(config, PREVIOUS, version)


def _version(config: RunConfig, alias: str) -> str | None:
    found = aliased(config, alias)
    return None if found is None else found.version


def _choice(config: RunConfig) -> tuple[str, str, str | None]:
    """Choose what a rollback does, also where a move is under way; writes nothing.

    Returns:
        The version that leaves, the champion to come, and its `PREVIOUS`.

    Raises:
        ConfigError: there is nothing to return to.
        StageError: MLflow failed.
    """
    name, versions, entries = config.tracking.model_name, versions_of(config), history(config)
    holders = {alias: each.version for each in versions for alias in each.aliases}
    current, previous = holders.get(CHAMPION), holders.get(PREVIOUS)
    move = move_under_way(config)
    if move is not None and move["entry"]["version"] == current:
        if move["entry"]["action"] == "rollback":
            return move["entry"]["previous"], move["entry"]["version"], move["then"]
        previous = move["then"] or previous
    elif move is not None:
        previous = move["was"]
    if current is None or previous is None:
        missing = CHAMPION if current is None else PREVIOUS
        raise ConfigError(f"{name} has no {missing}, so there is nothing to roll back to")
    out = {each.version for each in versions if each.tags.get(GATE_TAG) == _ROLLED_BACK}
    last = entries[-1]["version"] if entries else current
    if previous == current and last != current and last in out:
        leaving, version = last, current  # somebody has moved the champion, and nothing else
    else:
        leaving = current
        there = {each.version for each in versions} - out - {leaving}
        line = [previous, *_champions_before(entries, previous)]
        found = next((each for each in line if each in there), None)
        if found is None:
            raise ConfigError(
                f"{name} has no champion before version {current} that is there and was not "
                "rolled back, so there is nothing to roll back to; promote a version instead"
            )
        version = found
    there = {each.version for each in versions} - out - {leaving, version}
    then = next((each for each in _champions_before(entries, version) if each in there), None)
    return leaving, version, then


def _champions_before(entries: Sequence[Mapping[str, Any]], version: str) -> Iterator[str]:
    """Yield the champions before a version by the history, the last one first."""
    for entry in reversed(entries):
        if entry["action"] == "promote" and entry["version"] == version:
            if entry["previous"] is None:
                return
            version = entry["previous"]
            yield version
