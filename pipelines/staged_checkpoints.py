"""The queue of checkpoints that wait for their validation, as folders; no Ray.

Ray's controller puts the averaged weights of a committed checkpoint here as soon as it is told of
it, by hard links where that is possible, so Ray may delete the checkpoint at any time. The driver
takes them out. What is left after a crash is validated by the next command.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipelines.best_checkpoint import copy_weights
from pipelines.config import RunConfig
from pipelines.storage import read_json, temporary_beside
from pipelines.validation import VALIDATION_FOLDER

__all__ = [
    "QUEUE",
    "CheckpointKeeper",
    "Staged",
    "is_due",
    "stage_checkpoint",
    "staged_checkpoints",
]

QUEUE = "queue"


@dataclass(frozen=True, kw_only=True, slots=True)
class Staged:
    """A checkpoint in the queue."""

    step: int
    folder: Path

    def remove(self) -> None:
        """Take it out of the queue."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointKeeper:
    """What Ray's controller calls with the folder of each committed checkpoint."""

    train_folder: Path
    every_steps: int | None
    checkpoint_every: int
    num_steps: int

    @classmethod
    def of(cls, config: RunConfig, train_folder: Path) -> Self:
        """Keep the checkpoints that a run validates."""
        return cls(
            train_folder=train_folder.resolve(),
            every_steps=config.validate.every_steps,
            checkpoint_every=config.train.checkpoint_every,
            num_steps=config.train.num_steps,
        )

    def __call__(self, checkpoint: Path) -> None:
        """Put a checkpoint into the queue if it is due.

        Raises:
            OSError: it could not be copied.
            DataError: it does not say of which step it is.
        """
        step = _step_of(checkpoint)
        if is_due(
            step,
            every_steps=self.every_steps,
            checkpoint_every=self.checkpoint_every,
            num_steps=self.num_steps,
        ):
            stage_checkpoint(checkpoint, self.train_folder)


def _step_of(checkpoint: Path) -> int:
    return int(read_json(checkpoint / "train_state.json")["num_steps"])


def is_due(step: int, *, every_steps: int | None, checkpoint_every: int, num_steps: int) -> bool:
    """Tell whether the checkpoint after some steps is validated.

    Args:
        step: optimiser steps that were done.
        every_steps: ``validate.every_steps``; the first checkpoint at or after each multiple is.
        checkpoint_every: steps between checkpoints.
        num_steps: steps of the run; the last checkpoint always is.
    """
    if every_steps is None or step >= num_steps:
        return True
    return step // every_steps > max(step - checkpoint_every, 0) // every_steps


def stage_checkpoint(checkpoint: Path, train_folder: Path) -> None:
    """Put a committed checkpoint into the queue, whole or not at all.

    Args:
        checkpoint: its folder.
        train_folder: of the run.

    Raises:
        OSError: it could not be copied.
    """
    step = _step_of(checkpoint)
    place = train_folder / VALIDATION_FOLDER / QUEUE / f"step-{step:06d}"
    if place.exists():  # a resumed run has come here again, with the same weights
        return
    temporary = temporary_beside(place)
    if temporary.exists():
        shutil.rmtree(temporary)
    try:
        copy_weights(checkpoint, temporary)
        os.replace(temporary, place)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def staged_checkpoints(train_folder: Path) -> list[Staged]:
    """Return what is in the queue, by step."""
    queue = train_folder / VALIDATION_FOLDER / QUEUE
    found = [Staged(step=int(p.name.removeprefix("step-")), folder=p) for p in queue.glob("step-*")]
    return sorted(found, key=lambda staged: staged.step)
