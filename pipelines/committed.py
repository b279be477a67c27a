"""Which checkpoints a training has committed; Ray's own snapshot is the truth, not the folders.

A folder may be half written, or left behind by a worker that was lost: what the snapshot does not
name is not a checkpoint. In: the folder of a training. Out: its checkpoints, oldest first.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cil.errors import DataError
from pipelines.checkpoint import EMA_FILE
from pipelines.storage import read_json
from pipelines.train_state import STATE_FILE

__all__ = ["RAY_FOLDER", "SNAPSHOT", "CommittedCheckpoint", "committed_checkpoints", "run_name"]

RAY_FOLDER = "ray"
SNAPSHOT = "checkpoint_manager_snapshot.json"


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


def committed_checkpoints(folder: Path) -> tuple[CommittedCheckpoint, ...]:
    """List what a training has committed.

    Args:
        folder: Ray's folder of one training, ``OUTPUT/train/ray/NAME``.

    Returns:
        Its checkpoints in the order of their steps; none if there is no snapshot yet.

    Raises:
        DataError: the snapshot is damaged, or names a checkpoint that is not there.
    """
    snapshot = folder / SNAPSHOT
    if not snapshot.exists():
        return ()
    raw = read_json(snapshot)
    try:
        names = [str(result["checkpoint_dir_name"]) for result in raw["checkpoint_results"]]
        latest = raw["latest_checkpoint_result"]
        last = str(latest["checkpoint_dir_name"]) if latest else None
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{snapshot} is not as Ray writes it ({type(error).__name__}: {error}); was it written "
            "by another version of Ray?"
        ) from error
    found = [_checkpoint(folder, name, last=name == last) for name in names]
    return tuple(sorted(found, key=lambda checkpoint: checkpoint.num_steps))


def _checkpoint(folder: Path, name: str, *, last: bool) -> CommittedCheckpoint:
    if Path(name).name != name:
        raise DataError(f"{folder / SNAPSHOT} names a checkpoint {name!r}, which is no name")
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
            "is running it may just have been replaced: try again"
        ) from error
