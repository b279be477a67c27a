"""What a training checkpoint holds, and how it is written and read.

All ranks write into their own temporary folder, which `checkpoint_writer` moves together and Ray
commits; a checkpoint that Ray has not committed does not exist. Inside:

    state/              DeepSpeed's shards of weights and optimiser, for it alone to read
    ema.safetensors     the whole average of what is trained, names to float32
    train_state.json    steps, clips seen, and what must agree on resume
    sha256/             hashes of all these files, by the rank that wrote them

Version 1 had the average as each rank's shard, ``ema_rank0.safetensors``, and the whole one in the
last step's checkpoint only.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from cil.errors import DataError
from pipelines.checkpoint_sums import check_sums, instead_of, write_sums
from pipelines.storage import write_json
from pipelines.train_state import STATE_FILE, TrainState, read_state
from pipelines.weight_average import ShardedEma

__all__ = [
    "EMA_FILE",
    "TAG",
    "TrainState",
    "checkpoint_bytes",
    "damage_named",
    "load_checkpoint",
    "save_checkpoint",
]

EMA_FILE = "ema.safetensors"
TAG = "state"
"""Folder of DeepSpeed's part of a checkpoint."""


def save_checkpoint(
    folder: Path, *, engine: Any, ema: ShardedEma, state: TrainState, rank: int
) -> None:
    """Write this rank's part of a checkpoint; a collective call.

    Args:
        folder: this rank's temporary folder.
        engine: DeepSpeed engine.
        ema: weight average.
        state: where the run is.
        rank: number of this worker.

    Raises:
        OSError: a file could not be written; every rank has left the collective call by then, so
            that none waits for the one that failed.
    """
    whole = ema.gather(engine.module, keep=rank == 0)
    with _failures_kept(engine) as failures:
        engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
    if failures:
        raise OSError(f"{failures[0]}") from failures[0]
    if rank == 0:
        (folder / "latest").write_text(TAG)  # for DeepSpeed's own scripts, run by hand
        write_json(folder / STATE_FILE, asdict(state))
        try:
            save_file(whole, folder / EMA_FILE)
        except SafetensorError as error:  # its kind of OSError
            raise OSError(f"{EMA_FILE}: {error}") from error
    write_sums(folder, rank)


@contextmanager
def _failures_kept(engine: Any) -> Iterator[list[Exception]]:
    """Let DeepSpeed's save go on after a file failed: the other ranks wait for it at its end."""
    failures: list[Exception] = []

    def kept(write: Callable[..., None]) -> Callable[..., None]:
        def attempt(*arguments: Any, **named: Any) -> None:
            try:
                write(*arguments, **named)
            except (OSError, RuntimeError) as error:  # torch's writer raises the latter
                failures.append(error)

        return attempt

    files = engine.checkpoint_engine
    with ExitStack() as undo:
        for owner, name in ((files, "save"), (engine, "_copy_recovery_script")):
            write = getattr(owner, name)
            setattr(owner, name, kept(write))
            undo.callback(setattr, owner, name, write)
        yield failures


def checkpoint_bytes(engine: Any, ema: ShardedEma, rank: int) -> int:
    """Return how many bytes this rank's part of a checkpoint takes, without what is small.

    Args:
        engine: DeepSpeed engine.
        ema: weight average.
        rank: number of this worker.
    """
    parameters: list[Any] = list(engine.module.parameters())
    held = sum(shard.numel() * 4 for shard in ema.shards)  # one of three tensors of that size
    divided = engine.zero_optimization_stage() == 3
    if divided:
        weights = sum(p.ds_tensor.numel() * p.ds_tensor.element_size() for p in parameters)
    else:
        values = engine.module.state_dict().values()
        weights = sum(value.numel() * value.element_size() for value in values)
    trained = sum(p.ds_numel if divided else p.numel() for p in parameters if p.requires_grad)
    average = trained * 4 if rank == 0 else 0
    if rank == 0 or divided:
        return int(weights + 3 * held + average)
    return 0 if ema.replicated else 3 * held


def load_checkpoint(
    folder: Path,
    *,
    engine: Any,
    ema: ShardedEma,
    expected: TrainState,
    rank: int,
    universal: Path | None = None,
) -> TrainState:
    """Read a checkpoint back into the engine and the average; a collective call.

    Args:
        folder: the checkpoint.
        engine: DeepSpeed engine, as it was started.
        ema: weight average.
        expected: what must agree; its ``world_size`` is the number of workers now.
        rank: number of this worker.
        universal: DeepSpeed's part, converted for another number of workers.

    Returns:
        Where the run was, for the workers that are here now.

    Raises:
        DataError: the checkpoint is of another run, or damaged, or was written by another number of
            workers and is not converted.
    """
    with damage_named(folder):
        state = read_state(folder)
    expected.require_same_run(state)
    check_sums(folder, part=rank, num_parts=expected.world_size)
    with damage_named(folder):
        average = _open_average(folder, engine, ema, state, rank)
        resized = state.world_size != expected.world_size and not ema.replicated
        if resized and universal is None:
            raise DataError(
                f"the checkpoint in {folder} was written by {state.world_size} workers, there are "
                f"{expected.world_size}, and it was not converted for them; run the same command "
                "again"
            )
        loaded = _load_engine(engine, universal if resized and universal else folder, resized)
        if loaded is None:
            raise DataError(f"DeepSpeed could not load the checkpoint in {folder}; is it complete?")
        if isinstance(average, dict):
            for number, shard in enumerate(ema.shards):
                shard.copy_(average[f"group{number}"])
        else:
            ema.scatter(engine.module, average.get_tensor)
    state.format_version = expected.format_version
    for name in ("world_size", "zero_stage", "trainable", "model_hash", "encoder_hash"):
        setattr(state, name, getattr(expected, name))
    return state


def _open_average(folder: Path, engine: Any, ema: ShardedEma, state: TrainState, rank: int) -> Any:
    """Open the average before anything is changed; version 1 has this rank's shards of it."""
    if state.format_version == 1:
        return load_file(folder / f"ema_rank{0 if ema.replicated else rank}.safetensors")
    average: Any = safe_open(folder / EMA_FILE, "pt")
    trained = {name for name, p in engine.module.named_parameters() if p.requires_grad}
    wrong = sorted(trained ^ set(average.keys()))
    if wrong:
        raise DataError(
            f"the checkpoint in {folder} is of another model: {len(wrong)} trained parameters are "
            f"only there or only here, the first is {wrong[0]}; use the settings it was made with, "
            "or another output.dir"
        )
    return average


def _load_engine(engine: Any, folder: Path, universal: bool) -> str | None:
    # DeepSpeed asks its configuration which kind of checkpoint it is, and only when it loads one.
    engine._config.load_universal_checkpoint = universal
    try:
        loaded, _ = engine.load_checkpoint(str(folder), tag=TAG)
    finally:
        engine._config.load_universal_checkpoint = False
    _match_step_counts(engine)
    return None if loaded is None else str(loaded)


def _match_step_counts(engine: Any) -> None:
    """Count the optimiser's steps as it does itself: torch in a tensor, DeepSpeed's Adam in an int.

    They differ where ``offload_optimizer`` was another when the checkpoint was written.
    """
    optimiser = getattr(engine.optimizer, "optimizer", engine.optimizer)
    in_tensors = isinstance(optimiser, torch.optim.AdamW)
    for state in getattr(optimiser, "state", {}).values():
        step = state.get("step")
        if step is not None and torch.is_tensor(step) != in_tensors:
            state["step"] = torch.tensor(float(step)) if in_tensors else int(step)


@contextmanager
def damage_named(folder: Path) -> Iterator[None]:
    """Turn what a damaged file of a checkpoint raises into an error that names the checkpoint.

    Raises:
        DataError: a file is missing or damaged.
    """
    try:
        yield
    except DataError:  # says it already
        raise
    except (OSError, EOFError, TypeError, ValueError, SafetensorError) as error:
        raise _damaged(folder, error) from error
    except Exception as error:
        # what torch's reader raises has no public name, or one for everything
        if type(error).__name__ != "UnpicklingError" and "PytorchStreamReader" not in str(error):
            raise
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: BaseException) -> DataError:
    return DataError(f"the checkpoint in {folder} is damaged: {error}{instead_of(folder)}")
