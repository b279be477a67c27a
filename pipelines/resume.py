"""What the driver does before a training goes on from its last checkpoint. No GPU, no workers.

It finds the checkpoint that Ray committed last, refuses one of another run before anything is
started, and converts DeepSpeed's part for another number of workers (a universal checkpoint).
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ray.train import UserCallback

from cil.errors import DataError, StageError
from pipelines.checkpoint import TAG, damage_named
from pipelines.checkpoint_sums import check_sums
from pipelines.checkpoint_writer import readable_bytes
from pipelines.committed import SNAPSHOT, SNAPSHOT_COPY, read_snapshot
from pipelines.config import child_environment
from pipelines.dependent import dependent_command
from pipelines.progress import console
from pipelines.storage import write_atomic, write_json
from pipelines.train_state import STATE_FILE, TrainState, read_state

__all__ = ["KeepSnapshot", "last_checkpoint", "prepare_resume"]

_UNIVERSAL = ".universal.tmp"
_NONE_YET: dict[str, Any] = {
    "checkpoint_results": [],
    "checkpoint_report_indices": [],
    "latest_checkpoint_result": None,
}
"""What the copy of Ray's list says before the first commit; Ray itself writes nothing then."""


class KeepSnapshot(UserCallback):  # type: ignore[misc]
    """Keeps a copy of Ray's list of checkpoints, which Ray overwrites in place.

    A disk that is full at that moment leaves half a list, from which Ray does not start again.
    """

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Copy the list after a commit, whole or not at all."""
        if checkpoint is not None:
            write_atomic(self._folder / SNAPSHOT_COPY, (self._folder / SNAPSHOT).read_bytes())


def last_checkpoint(run_folder: Path) -> Path | None:
    """Return the checkpoint of a run that Ray committed last; a damaged list is repaired.

    Args:
        run_folder: Ray's folder of the run.

    Raises:
        DataError: the list of checkpoints is missing or damaged, and so is the copy of it.
    """
    content = read_snapshot(run_folder / SNAPSHOT) or _restored(run_folder)
    if content is None:
        return None
    content = _without_deleted(run_folder, content)
    latest = content["latest_checkpoint_result"]
    return run_folder / latest["checkpoint_dir_name"] if latest else None


def _restored(run_folder: Path) -> dict[str, Any] | None:
    """Put the copy in the place of a list that is missing or damaged; None: nothing to list."""
    snapshot, copy = run_folder / SNAPSHOT, run_folder / SNAPSHOT_COPY
    content = read_snapshot(copy)
    if content is None:
        # rank 0 moves the state into place last of all its files
        whole = [path.parent.name for path in run_folder.glob(f"checkpoint_*/{STATE_FILE}")]
        if whole:
            raise DataError(
                f"{snapshot} is {'damaged' if snapshot.exists() else 'missing'}, and so is "
                f"{copy.name} beside it: nothing lists the checkpoints any more, and "
                f"{', '.join(sorted(whole))} would be lost; restore one of the two files from a "
                f"backup, or move {run_folder} away to start this training again"
            )
    if content is None or not content["checkpoint_results"]:
        snapshot.unlink(missing_ok=True)  # torn while the first was committed
        return None
    write_atomic(snapshot, copy.read_bytes())
    console.print(
        f"train: {snapshot} was missing or damaged; restored from {copy.name}", markup=False
    )
    return content


def _without_deleted(run_folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Take checkpoints that were deleted out of Ray's list, so that it goes on from one before."""
    results, indices = content["checkpoint_results"], content["checkpoint_report_indices"]
    there = [
        (result, index)
        for result, index in zip(results, indices, strict=True)
        if (run_folder / result["checkpoint_dir_name"]).is_dir()
    ]
    if not results or len(there) == len(results):
        return content
    if not there:
        raise DataError(
            f"all checkpoints of {run_folder} were deleted; delete it as well to start this "
            "training again"
        )
    last = max(there, key=lambda pair: pair[1])[0]
    console.print(
        f"train: going on from {last['checkpoint_dir_name']}: {len(results) - len(there)} of the "
        "checkpoints were deleted",
        markup=False,
    )
    shorter = {
        **content,
        "checkpoint_results": [result for result, _ in there],
        "checkpoint_report_indices": [index for _, index in there],
        "latest_checkpoint_result": last,
    }
    write_atomic(run_folder / SNAPSHOT, json.dumps(shorter).encode())
    return shorter


def _remove_uncommitted(run_folder: Path) -> None:
    """Delete checkpoints that Ray does not list: a process was killed before it committed them."""
    content = read_snapshot(run_folder / SNAPSHOT) or _NONE_YET
    listed = {result["checkpoint_dir_name"] for result in content["checkpoint_results"]}
    for path in run_folder.glob("checkpoint_*"):
        if path.is_dir() and path.name not in listed:
            shutil.rmtree(path)


def prepare_resume(folder: Path, run_folder: Path, expected: TrainState) -> Path | None:
    """Look at the last checkpoint of a run, and convert it if the number of workers is another.

    Args:
        folder: the training folder; what is converted goes into a temporary folder of it.
        run_folder: Ray's folder of the run.
        expected: what must agree; ``world_size`` is the number of workers now.

    Returns:
        The converted checkpoint, None if none is needed.

    Raises:
        DataError: the checkpoint is of another run, or damaged.
        StageError: it could not be converted.
    """
    restored = read_snapshot(run_folder / SNAPSHOT) is None
    checkpoint = last_checkpoint(run_folder)
    if checkpoint is None or not restored:  # the copy may be older than what it stands for
        _remove_uncommitted(run_folder)
    if checkpoint is None:
        if read_snapshot(run_folder / SNAPSHOT_COPY) is None:
            write_json(run_folder / SNAPSHOT_COPY, _NONE_YET)
        return None
    with damage_named(checkpoint):
        state = read_state(checkpoint)
    check_sums(checkpoint)
    expected.require_same_run(state)
    console.print(f"train: going on from the checkpoint of step {state.num_steps}")
    if state.world_size == expected.world_size or not expected.zero_stage:
        return None
    console.print(
        f"train: the checkpoint of step {state.num_steps} was written by {state.world_size} "
        f"workers; converting it for {expected.world_size}"
    )
    return convert(checkpoint, folder / _UNIVERSAL, zero_stage=expected.zero_stage)


def convert(checkpoint: Path, target: Path, *, zero_stage: int) -> Path:
    """Convert DeepSpeed's part of a checkpoint so that any number of workers can load it.

    Args:
        checkpoint: the checkpoint.
        target: folder to make.
        zero_stage: ZeRO stage that wrote it, 1 to 3.

    Raises:
        DataError: a file of the checkpoint is not what was written.
        StageError: DeepSpeed could not convert it, or there is too little space.
    """
    check_sums(checkpoint)
    source = checkpoint / TAG
    # the parts of all tensors, then the tensors; the parts are deleted at the end
    needed = 2 * sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise StageError(
            f"converting {checkpoint} for another number of workers needs "
            f"{readable_bytes(needed)} in {target.parent}, {readable_bytes(free)} are free; make "
            "room there, or go on with the number of workers that wrote it"
        )
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    command = dependent_command("deepspeed.checkpoint.ds_to_universal")
    command += ["--input_folder", str(source), "--output_folder", str(target / TAG)]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    if zero_stage < 3:
        command.append("--inject_missing_state")
    done = subprocess.run(
        command,
        env=child_environment(DS_ACCELERATOR="cpu"),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        shutil.rmtree(target, ignore_errors=True)
        last = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise StageError(
            f"DeepSpeed could not convert {checkpoint} for another number of workers: {last}; go "
            "on with the number of workers that wrote it"
        )
    return target
