"""How a checkpoint gets into the run's folder: whole, or not at all and with the reason.

Each rank writes into a folder of its own beside the run's checkpoints, so on the same file system,
and from there its files are renamed into place: nothing is copied, so a disk that gets full does so
before that. All ranks agree on whether the checkpoint was written; if one of them could not, all
stop, and what Ray committed before stays.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cil.errors import StageError
from pipelines.checkpoint import TAG, checkpoint_bytes, save_checkpoint
from pipelines.train_state import TrainState
from pipelines.weight_average import ShardedEma

__all__ = ["CheckpointWriter", "readable_bytes"]

_RESERVE_BYTES = 2**23
"""Room that is left for logs and for what Ray notes."""


class CheckpointWriter:
    """Writes the checkpoints of one worker."""

    def __init__(self, folder: Path, *, engine: Any, ema: ShardedEma, rank: int) -> None:
        """Prepare.

        Args:
            folder: the training folder, the same for all workers.
            engine: DeepSpeed engine.
            ema: weight average.
            rank: number of this worker.

        Raises:
            StageError: this worker does not see the folder.
        """
        if not folder.is_dir():
            raise StageError(
                f"worker {rank} does not see {folder} of the command that started it; output.dir "
                "must be on a file system that all nodes share"
            )
        self._folder, self._engine, self._ema, self._rank = folder, engine, ema, rank
        # the name is what the next command deletes if this process is killed
        self._temporary = folder / f".checkpoint-rank{rank}.tmp"

    def write(self, state: TrainState) -> str | None:
        """Write a checkpoint, move it into place and have Ray commit it; a collective call.

        Args:
            state: where the run is.

        Returns:
            Why it could not be written, the same on every rank, and then nothing of it is left;
            or None.
        """
        shutil.rmtree(self._temporary, ignore_errors=True)
        problem = self._too_little_space(state) or self._write_parts(state)
        if problem is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            return problem
        import ray.train
        from ray.train import Checkpoint

        ray.train.report(
            {"rows": [], "ledger": []},
            checkpoint=Checkpoint.from_directory(str(self._temporary)),
            checkpoint_upload_fn=_move_into_place,
        )
        return None

    def _too_little_space(self, state: TrainState) -> str | None:
        part = checkpoint_bytes(self._engine, self._ema, self._rank)
        free = shutil.disk_usage(self._folder).free
        answers = _of_all_ranks((part, free))
        needed, free = sum(part for part, _ in answers), min(free for _, free in answers)
        if free >= needed + _RESERVE_BYTES:
            return None
        return self._problem(
            state, "there is too little space", needed=needed + _RESERVE_BYTES, free=free
        )

    def _write_parts(self, state: TrainState) -> str | None:
        # No rank may begin to save unless all do: saving is a collective call.
        return self._of_all(state, self._make_folder) or self._of_all(state, self._save)

    def _make_folder(self, _: TrainState) -> None:
        (self._temporary / TAG).mkdir(parents=True)

    def _save(self, state: TrainState) -> None:
        save_checkpoint(
            self._temporary, engine=self._engine, ema=self._ema, state=state, rank=self._rank
        )

    def _of_all(self, state: TrainState, act: Callable[[TrainState], None]) -> str | None:
        """Act on every rank; why one of them could not, the same on all, or None."""
        error = None
        try:
            act(state)
        except OSError as problem:
            error = f"worker {self._rank}: {problem}"
        part = checkpoint_bytes(self._engine, self._ema, self._rank)
        free = shutil.disk_usage(self._folder).free
        answers = _of_all_ranks((part, free, error))
        errors = [error for *_, error in answers if error is not None]
        if not errors:
            return None
        needed, free = sum(part for part, *_ in answers), min(free for _, free, _ in answers)
        return self._problem(state, errors[0], needed=needed, free=free)

    def _problem(self, state: TrainState, reason: str, *, needed: int, free: int) -> str:
        return (
            f"the checkpoint of step {state.num_steps} cannot be written to {self._folder}: "
            f"{reason}; it needs {readable_bytes(needed)}, {readable_bytes(free)} are free. The "
            "last committed checkpoint is kept: make room there (also by "
            "train.num_checkpoints_kept), then run the same command again to go on from it"
        )


def readable_bytes(count: int) -> str:
    """Write a number of bytes for people and for machines."""
    return f"{count / 2**20:.1f} MiB ({count} bytes)"


def _of_all_ranks(value: Any) -> list[Any]:
    """Return the value of every rank; a collective call."""
    import torch

    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return list(values)


def _move_into_place(checkpoint: Any, name: str) -> Any:
    """Rename a worker's files into the folder that Ray has chosen for the checkpoint.

    The folders of all workers are merged: no two write a file of the same name but the tag, which
    is the same.
    """
    import ray.train
    from ray.train import Checkpoint

    source = Path(checkpoint.path)
    target = Path(ray.train.get_context().get_storage().experiment_fs_path) / name
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
    shutil.rmtree(source)
    return Checkpoint.from_directory(str(target))
