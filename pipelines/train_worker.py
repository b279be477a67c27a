"""One process of training on Ray Train: latent shards in, metrics and checkpoints out.

Each worker builds the same network, reads its share of every batch ahead, and takes optimiser steps
(`train_step.py`) from the last committed checkpoint on.
"""

import logging
import time
from contextlib import ExitStack
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from cil.errors import CilError, StageError
from pipelines.config import RunConfig, validate_config
from pipelines.dataset import open_training_data
from pipelines.model_folder import build_model
from pipelines.watch import start_heartbeat
from pipelines.worker_logs import label_training_worker

if TYPE_CHECKING:
    from pipelines.train_step import NonFiniteLossError

__all__ = ["train_worker"]

_log = logging.getLogger(__name__)
_BOARD_S = 60


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """One training process; Ray Train calls it on every worker.

    Args:
        settings: the resolved configuration and where the data set is.

    Returns:
        ``{"stopped": reason, "nonfinite": record}`` if a guard stopped the run on all workers,
        ``{"unwritten": reason}`` if a checkpoint could not be written, ``{"failed": failure}`` if
        a worker failed before in a way that would come again, else an empty dict.

    Raises:
        StageError: the GPU has too little memory.
        DataError: data is damaged. One worker alone may see this or the lack of memory while the
            others wait for it, so it raises, by which Ray ends them all; those that Ray starts in
            their place are told on the board and return at once.
    """
    import torch

    board = settings["watch"]
    failure = _answer(board.stopped.remote())
    if failure is not None:
        return {"failed": failure}
    try:
        with ExitStack() as resources:
            return _train(settings, resources)
    except torch.OutOfMemoryError as error:
        from pipelines.memory_advice import memory_advice

        config = validate_config(settings["config"], source="the driver's configuration")
        failed = StageError(
            f"the GPU has too little memory: {str(error).partition('. ')[0]}; "
            f"{memory_advice(config)}"
        )
        _answer(board.stop.remote(_failure(failed)))
        raise failed from error
    except Exception as error:
        _log.error("training failed: %s: %s", type(error).__name__, error)
        if isinstance(error, CilError) and not _may_pass(error):
            _answer(board.stop.remote(_failure(error)))
        raise


def _answer(call: Any) -> Any:
    """Wait for the board; without it, which a node that was lost may have had, all goes on."""
    import ray

    try:
        return ray.get(call, timeout=_BOARD_S)
    except ray.exceptions.RayError as error:
        _log.warning("the board of warnings does not answer: %s", error)
        return None


def _failure(error: CilError) -> dict[str, str]:
    return {"kind": type(error).__name__, "message": str(error)}


def _may_pass(error: CilError) -> bool:
    """Tell whether workers that are started again may be luckier: a store was out of reach."""
    return not isinstance(error.__cause__, NoneType | ValueError | KeyError | TypeError)


def _train(settings: dict[str, Any], resources: ExitStack) -> dict[str, Any]:
    """Train until the last step; what must be closed at the end goes into ``resources``."""
    import ray.train
    import torch

    from pipelines.checkpoint_writer import CheckpointWriter
    from pipelines.engine import start_engine
    from pipelines.ledger import RecordedBatches
    from pipelines.prefetch import read_ahead
    from pipelines.train_step import NonFiniteLossError, TrainStep
    from pipelines.weight_average import ShardedEma
    from pipelines.zero_config import learning_rate

    config = validate_config(settings["config"], source="the driver's configuration")
    train = config.train
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    label_training_worker(settings["run_id"], rank, world_size, as_json=settings["logs_as_json"])
    heart = resources.enter_context(start_heartbeat(settings["watch"], train, context))
    torch.set_num_threads(train.cpus_per_worker)
    data = open_training_data(config, num_sharers=context.get_local_world_size())
    model = build_model(config, data.largest)
    engine = start_engine(train, model)
    ema = ShardedEma(engine, train.ema_decay)
    writer = CheckpointWriter(Path(settings["folder"]), engine=engine, ema=ema, rank=rank)
    state = _resume(settings, engine, ema, rank)
    batches = resources.enter_context(
        read_ahead(config, data, first_step=state.num_steps, rank=rank, world_size=world_size)
    )
    recorded = RecordedBatches(batches)
    step_of = TrainStep(
        config,
        model,
        recorded,
        engine,
        world_size=world_size,
        impl=settings["impl"],
        at=heart.at,
    )
    rows: list[dict[str, float]] = []
    while state.num_steps < train.num_steps:
        started, step = time.monotonic(), state.num_steps
        try:
            row = step_of(step, learning_rate=learning_rate(train, step))
        except NonFiniteLossError as error:
            # every rank sees the same loss and stops here; the steps before it go on record
            ray.train.report({"rows": rows, "ledger": recorded.take(before=step)})
            return _stopped(error, engine, config, write=rank == 0)
        ema.update()
        state.num_steps += 1
        state.num_clips_seen += train.global_batch_size
        seconds = time.monotonic() - started
        spent = {"time_s": time.time(), "seconds": seconds, "data_wait_s": batches.last_wait_s}
        rows.append({**row, "step": step, **spent})
        last = state.num_steps == train.num_steps
        heart.at(step, "checkpoint")  # and reports: each waits for all workers
        saves = last or state.num_steps % train.checkpoint_every == 0
        if saves or state.num_steps % train.log_every == 0:
            # Before the checkpoint: what is committed must be on record.
            ray.train.report({"rows": rows, "ledger": recorded.take()})
            rows = []
        if saves:
            state.epoch = data.epoch(state.num_steps, train.global_batch_size, config.seed)
            problem = writer.write(state)
            if problem is not None:
                return {"unwritten": problem}
    engine.destroy()
    return {}


def _resume(settings: dict[str, Any], engine: Any, ema: Any, rank: int) -> Any:
    """Return where the run starts, from the last committed checkpoint if there is one."""
    import ray.train

    from pipelines.checkpoint import TrainState, load_checkpoint

    start = TrainState(**settings["state"])
    last_checkpoint = ray.train.get_checkpoint()
    if last_checkpoint is None:
        return start
    universal = settings["universal"]
    with last_checkpoint.as_directory() as saved:
        return load_checkpoint(
            Path(saved),
            engine=engine,
            ema=ema,
            expected=start,
            rank=rank,
            universal=None if universal is None else Path(universal),
        )


def _stopped(
    error: "NonFiniteLossError", engine: Any, config: RunConfig, *, write: bool
) -> dict[str, Any]:
    """Leave the weights of the step for `cil train --replay`; a collective call."""
    from pipelines.replay import save_whole_weights

    folder = Path(config.output.dir) / "train"
    left = folder / f"nonfinite-step-{error.record['step']}.safetensors"
    save_whole_weights(engine, left, write=write)
    return {"stopped": str(error), "nonfinite": error.record}
