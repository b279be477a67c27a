"""What a training checkpoint holds, and how it is written and read.

All ranks write into their own temporary folder, Ray merges and commits them; a checkpoint that Ray
has not committed does not exist. Inside:

    state/                  DeepSpeed's shards of weights and optimiser, for it alone to read
    ema_rank0.safetensors   each rank's shard of the weight average; one for all without ZeRO
    train_state.json        steps, clips seen, and the hashes that must agree on resume
    ema.safetensors         the whole average of what is trained, in the last step's checkpoint
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cil.errors import DataError
from pipelines.storage import read_json, write_json
from pipelines.weight_average import ShardedEma

__all__ = ["EMA_FILE", "TrainState", "load_checkpoint", "save_checkpoint"]

EMA_FILE = "ema.safetensors"
_TAG = "state"
_VERSION = 1


@dataclass(kw_only=True, slots=True)
class TrainState:
    """Where a run is; with the run's settings it decides everything that follows."""

    format_version: int = _VERSION
    num_steps: int = 0
    """Optimiser steps done."""
    num_clips_seen: int = 0
    """Clips trained on."""
    seed: int = 0
    """Seed of order and noise; with ``num_steps`` it is the whole state of all randomness."""
    world_size: int = 1
    """Workers that wrote the checkpoint."""
    config_hash: str = ""
    """Hash of the training settings."""
    manifest_fingerprint: str = ""
    """Version of the data set."""

    def require_same_run(self, other: "TrainState") -> None:
        """Refuse to resume from another run's checkpoint.

        Raises:
            DataError: something differs; both values are in the message.
        """
        for name in ("format_version", "seed", "world_size", "config_hash", "manifest_fingerprint"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise DataError(
                    f"the checkpoint is of another run: {name} is {theirs} there and {mine} here; "
                    "use the settings it was made with, or another output.dir"
                )


def save_checkpoint(
    folder: Path, *, engine: Any, ema: ShardedEma, state: TrainState, rank: int, last: bool
) -> None:
    """Write this rank's part of a checkpoint; a collective call.

    Args:
        folder: this rank's temporary folder.
        engine: DeepSpeed engine.
        ema: weight average.
        state: where the run is.
        rank: number of this worker.
        last: also write the whole weight average, for export.
    """
    engine.save_checkpoint(str(folder), tag=_TAG)
    if rank == 0 or not ema.replicated:
        shards = {f"group{number}": shard.cpu() for number, shard in enumerate(ema.shards)}
        save_file(shards, _ema_shard(folder, ema, rank))
    whole = ema.gather(engine.module, keep=rank == 0) if last else None
    if rank == 0:
        write_json(folder / "train_state.json", asdict(state))
        if whole is not None:
            save_file(whole, folder / EMA_FILE)


def load_checkpoint(
    folder: Path, *, engine: Any, ema: ShardedEma, expected: TrainState, rank: int
) -> TrainState:
    """Read a checkpoint back into the engine and the average; a collective call.

    Returns:
        Where the run was.

    Raises:
        DataError: the checkpoint is of another run, or damaged.
    """
    with _damage_named(folder):
        state = TrainState(**read_json(folder / "train_state.json"))
    expected.require_same_run(state)
    with _damage_named(folder):
        saved = load_file(_ema_shard(folder, ema, rank))
    loaded, _ = engine.load_checkpoint(str(folder), tag=_TAG)
    if loaded is None:
        raise DataError(f"DeepSpeed could not load the checkpoint in {folder}; is it complete?")
    for number, shard in enumerate(ema.shards):
        shard.copy_(saved[f"group{number}"])
    return state


def _ema_shard(folder: Path, ema: ShardedEma, rank: int) -> Path:
    return folder / f"ema_rank{0 if ema.replicated else rank}.safetensors"


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise DataError(
            f"the checkpoint in {folder} is damaged: {error}; choose another output.dir, or delete "
            "this one's train folder to start again"
        ) from error
