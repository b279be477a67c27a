"""Which checkpoints a training has committed; Ray's own snapshot is the truth, not the folders.

A folder may be half written, or left behind by a worker that was lost: what the snapshot does not
name is not a checkpoint. Ray overwrites its snapshot in place, so there is a copy of it, which is
read where the snapshot is missing or damaged. Before the first commit the copy names none.
In: the folder of a training. Out: its checkpoints, oldest first.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cil.errors import DataError
from pipelines.checkpoint import EMA_FILE
from pipelines.checkpoint_sums import instead_of
from pipelines.progress import console
from pipelines.train_state import STATE_FILE, read_state

__all__ = [
    "RAY_FOLDER",
    "SNAPSHOT",
    "SNAPSHOT_COPY",
    "CommittedCheckpoint",
    "committed_checkpoints",
    "other_trainings",
    "read_snapshot",
    "run_name",
]

RAY_FOLDER = "ray"
SNAPSHOT = "checkpoint_manager_snapshot.json"
SNAPSHOT_COPY = "last_snapshot.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class CommittedCheckpoint:
    """A checkpoint that Ray has committed."""

    path: Path
    num_steps: int
    """Optimiser steps done."""
    written: str
    """When it was written: ISO 8601, UTC, to the second."""
    has_average: bool
    """Whether it holds the whole average of the weights."""
    last: bool
    """Whether it is the one that training goes on from."""
    config_hash: str
    """Identity of the training that wrote it."""
    world_size: int
    """Workers that wrote it."""

    @property
    def name(self) -> str:
        """Name that Ray gave its folder."""
        return self.path.name


def run_name(identity: str) -> str:
    """Return the name that a training has in Ray's folder."""
    return f"train-{identity[:12]}"


def other_trainings(folder: Path) -> str:
    """Name the trainings beside one that have committed checkpoints, for a message.

    Args:
        folder: Ray's folder of the one training.

    Returns:
        Names of their folders and their last steps; empty if there are none.
    """
    found = []
    for other in sorted(folder.parent.glob("train-*")):
        content = read_snapshot(other / SNAPSHOT) or read_snapshot(other / SNAPSHOT_COPY)
        latest = content["latest_checkpoint_result"] if content else None
        if latest is None or other.name == folder.name:
            continue
        try:
            step = f"step {read_state(other / latest['checkpoint_dir_name']).num_steps}"
        except (OSError, ValueError, TypeError):
            step = "its last step is not readable"
        found.append(f"{other.name} ({step})")
    return ", ".join(found)


def committed_checkpoints(
    folder: Path, *, needs_last: bool = False
) -> tuple[CommittedCheckpoint, ...]:
    """List what a training has committed; says which of it is gone or damaged.

    Args:
        folder: Ray's folder of one training, ``OUTPUT/train/ray/NAME``.
        needs_last: the last one is wanted, not one by name: damage to it is an error.

    Returns:
        Its checkpoints in the order of their steps; none if there is no snapshot yet.

    Raises:
        DataError: the snapshot is damaged and has no copy, or all that it names are gone, or the
            last checkpoint is damaged and ``needs_last``.
    """
    snapshot = folder / SNAPSHOT
    content = read_snapshot(snapshot) or read_snapshot(folder / SNAPSHOT_COPY)
    if content is None:
        if not snapshot.exists():
            return ()
        raise DataError(
            f"{snapshot} is not as Ray writes it, so it is not known which checkpoints are "
            "complete; was it damaged, or written by another version of Ray? Restore it from a "
            "backup"
        )
    pairs = zip(content["checkpoint_results"], content["checkpoint_report_indices"], strict=True)
    listed = {result["checkpoint_dir_name"]: index for result, index in pairs}
    there = [name for name in listed if (folder / name).is_dir()]
    gone = sorted(set(listed) - set(there))
    if gone and not there:
        raise DataError(
            f"all checkpoints that {snapshot} lists are gone ({', '.join(gone)}); restore one from "
            f"a backup, or delete {folder} and train again"
        )
    if gone:
        text = f"warning: {', '.join(gone)} of {folder} was deleted and is left out"
        console.print(text, markup=False)
    latest = content["latest_checkpoint_result"]
    last = latest["checkpoint_dir_name"] if latest else None
    if last in gone:  # training goes on from the one before, too
        last = max(there, key=lambda name: listed[name])
    found = []
    for name in there:
        try:
            found.append(_checkpoint(folder, name, last=name == last))
        except DataError as error:
            if needs_last and name == last:
                raise
            console.print(f"warning: {error}", markup=False)
    return tuple(sorted(found, key=lambda checkpoint: checkpoint.num_steps))


def read_snapshot(path: Path) -> dict[str, Any] | None:
    """Read Ray's list of checkpoints, or the copy of it.

    Args:
        path: the file.

    Returns:
        Its content; None if it is missing, or does not list checkpoints as Ray does.
    """
    try:
        content = json.loads(path.read_bytes())
        results, indices = content["checkpoint_results"], content["checkpoint_report_indices"]
        latest = content["latest_checkpoint_result"]
        names = [result["checkpoint_dir_name"] for result in results]
        last = [] if latest is None else [latest["checkpoint_dir_name"]]
    except (FileNotFoundError, ValueError, RecursionError, KeyError, TypeError):
        return None
    lists = isinstance(results, list) and isinstance(indices, list)
    numbered = lists and len(names) == len(indices) and all(type(each) is int for each in indices)
    named = all(isinstance(name, str) and Path(name).name == name != ".." for name in names)
    one_is_last = last[0] in names if last else not names
    return content if numbered and named and one_is_last else None


def _checkpoint(folder: Path, name: str, *, last: bool) -> CommittedCheckpoint:
    path, state = folder / name, folder / name / STATE_FILE
    try:
        raw: dict[str, Any] = json.loads(state.read_bytes())
        written = datetime.fromtimestamp(state.stat().st_mtime, UTC)
        return CommittedCheckpoint(
            path=path,
            num_steps=int(raw["num_steps"]),
            written=written.isoformat(timespec="seconds").replace("+00:00", "Z"),
            has_average=(path / EMA_FILE).exists(),
            last=last,
            config_hash=str(raw["config_hash"]),
            world_size=int(raw["world_size"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the checkpoint {path} is damaged ({type(error).__name__}: {error}); if the training "
            f"is running it may just have been replaced: try again{instead_of(path)}"
        ) from error
