"""The history of the aliases, and the move of aliases that is under way.

Both stand as tags of the registered model, so that they live where the aliases live: one tag for
each entry of the history, and one for the move, while it lasts.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from cil.errors import StageError
from pipelines.config import RunConfig
from pipelines.tracking.registered_model import LONGEST_TAG, model_of, registry

__all__ = [
    "add_history",
    "begin_move",
    "end_move",
    "fitting",
    "history",
    "move_under_way",
    "next_entry",
]

_log = logging.getLogger(__name__)

_ENTRY = "history."
_MOVE = "move_under_way"
_LONGEST_ESCAPE = 6  # signs that JSON makes of one: \u0000


def fitting(entry: Mapping[str, Any], texts: tuple[str, ...], most: int) -> dict[str, Any]:
    """Cut the texts of an entry so that all of it can be written.

    Args:
        entry: plain data.
        texts: keys whose texts may be cut, where they are there.
        most: signs that the entry may take as it is written.

    Returns:
        The entry; what cannot be encoded in its texts is replaced.
    """
    cut = dict(entry)
    for key in texts:
        if cut.get(key) is not None:
            cut[key] = cut[key].encode(errors="replace").decode()
    while (over := len(_written(cut)) - most) > 0:
        key = max(texts, key=lambda each: len(cut.get(each) or ""))
        if not cut.get(key):
            break
        less = min(over // _LONGEST_ESCAPE, len(cut[key]) // 2)
        cut[key] = cut[key][: -max(1, less)]
    return cut


def next_entry(config: RunConfig) -> int:
    """Return the number of the next entry of the history.

    Raises:
        StageError: MLflow failed.
    """
    with registry(config, "reading the history") as client:
        model = model_of(client, config.tracking.model_name)
    keys = [] if model is None else [key for key in model.tags if key.startswith(_ENTRY)]
    numbers = [int(n) for key in keys if (n := key.removeprefix(_ENTRY)).isdecimal()]
    return max(numbers, default=-1) + 1


def add_history(config: RunConfig, number: int, entry: Mapping[str, Any]) -> None:
    """Write what was done with the aliases as an entry; the same again changes nothing.

    Args:
        config: the run; names model and store.
        number: of the entry, from `next_entry`.
        entry: time, action, version, previous and reason; small.

    Raises:
        StageError: it is too long, or MLflow failed.
    """
    with registry(config, "writing the history") as client:
        name = config.tracking.model_name
        client.set_registered_model_tag(name, f"{_ENTRY}{number:06d}", _checked(entry))


def history(config: RunConfig) -> list[dict[str, Any]]:
    """Return what was done with the aliases, the oldest first.

    An entry that cannot be read is left out, with a warning that names its tag.

    Raises:
        StageError: MLflow failed.
    """
    with registry(config, "reading the history") as client:
        model = model_of(client, config.tracking.model_name)
    tags = {} if model is None else model.tags
    found = []
    for key in sorted(key for key in tags if key.startswith(_ENTRY)):
        entry = _plain_object(tags[key])
        if not _is_entry(entry):
            _log.warning(
                "%s: the tag %s is no entry of the history and is left out; delete it, or "
                "restore it from a backup",
                config.tracking.model_name,
                key,
            )
        else:
            found.append(entry)
    return found


def begin_move(config: RunConfig, move: Mapping[str, Any]) -> None:
    """Write down the move of aliases that begins now; it must be small.

    Raises:
        StageError: it is too long, or MLflow failed.
    """
    with registry(config, "writing down a move") as client:
        client.set_registered_model_tag(config.tracking.model_name, _MOVE, _checked(move))


def move_under_way(config: RunConfig) -> dict[str, Any] | None:
    """Return the move that a killed command has left; None if there is none.

    Raises:
        StageError: MLflow failed, or the tag was damaged.
    """
    with registry(config, "reading the move under way") as client:
        model = model_of(client, config.tracking.model_name)
    text = None if model is None else model.tags.get(_MOVE)
    if text is None:
        return None
    move = _plain_object(text)
    versions = [move.get(key, 0) for key in ("then", "was")]
    sound = type(move.get("number")) is int and all(isinstance(v, str | None) for v in versions)
    if not (sound and _is_entry(move.get("entry"))):
        raise StageError(
            f"{config.tracking.model_name}: the tag {_MOVE} is damaged; see by `cil status` that "
            "the aliases are right, and delete the tag"
        )
    return move


def end_move(config: RunConfig) -> None:
    """Take back what `begin_move` wrote, if it is there.

    Raises:
        StageError: MLflow failed.
    """
    name = config.tracking.model_name
    with registry(config, "ending a move") as client:
        model = model_of(client, name)
        if model is not None and _MOVE in model.tags:
            client.delete_registered_model_tag(name, _MOVE)


def _written(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), sort_keys=True, ensure_ascii=False)


def _checked(value: Mapping[str, Any]) -> str:
    text = _written(value)
    if len(text) > LONGEST_TAG:
        raise StageError(f"an entry of the history has {len(text)} signs, at most {LONGEST_TAG}")
    return text


def _is_entry(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    needed = all(isinstance(value.get(key), str) for key in ("time", "action", "version", "reason"))
    return needed and isinstance(value.get("previous", 0), str | None)


def _plain_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
