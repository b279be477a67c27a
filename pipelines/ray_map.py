"""One small job on Ray Data: rows in, a function on each of them in a worker, rows out.

The only place where the steps of encoding and estimation meet Ray Data. One row is one block, so a
row is what is scheduled and what is tried again; rows are small, what is large stays on disk.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cil.errors import StageError
from pipelines.runtime import root_cause

__all__ = ["map_rows"]

_ERROR = "error of the worker"
_log = logging.getLogger(__name__)


def map_rows(
    rows: Sequence[dict[str, Any]],
    work: Callable[..., Any],
    *,
    settings: dict[str, Any],
    concurrency: int,
    max_retries: int,
    doing: str,
    num_cpus: int = 1,
    num_gpus: int = 0,
) -> Iterator[dict[str, Any]]:
    """Apply ``work`` to each row, in worker processes.

    On CPUs the workers are tasks: steps share worker processes, and one that dies is replaced a
    bounded number of times. On GPUs they are actors, which keep what they have on the device.

    Args:
        rows: plain rows; a batch is one of them, as columns of length one.
        work: a function of a batch and of ``settings``; for GPUs a class that takes ``settings``.
        settings: further arguments.
        concurrency: rows that are worked on at the same time, at most.
        max_retries: how often a row is tried again when its worker dies.
        doing: what is being done, for messages: "encoding".
        num_cpus: CPUs of a worker.
        num_gpus: GPUs of a worker.

    Yields:
        Rows of results, as they come.

    Raises:
        StageError: a worker raised an error, or died too often.
    """
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    if not rows:
        return
    size = min(concurrency, len(rows))
    data = ray.data.from_items(list(rows), override_num_blocks=len(rows))
    if num_gpus:
        results = data.map_batches(
            _telling_class(work),
            fn_constructor_kwargs=settings,
            batch_size=1,
            compute=ActorPoolStrategy(size=size),
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            max_restarts=max_retries,
            max_task_retries=max_retries,
        )
    else:
        results = data.map_batches(
            _telling(work),
            fn_kwargs=settings,
            batch_size=1,
            compute=TaskPoolStrategy(size=size),
            num_cpus=num_cpus,
            max_retries=max_retries,
        )
    try:
        for row in results.iter_rows():
            if _ERROR in row:
                raise StageError(_stopped(doing, row[_ERROR]))
            yield row
    except ray.exceptions.RayError as error:
        cause = root_cause(error)
        raise StageError(_stopped(doing, _named(cause))) from error


def _stopped(doing: str, reason: str) -> str:
    return (
        f"{doing} stopped: {reason}; what is finished is kept, run the same command again to go on"
    )


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _telling(work: Callable[..., Any]) -> Callable[..., Any]:
    """Let a row stand for an error of ``work``: Ray Data passes on only that there was one."""

    @functools.wraps(work)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return work(*args, **kwargs)
        except Exception as error:
            _log.exception("%s failed", getattr(work, "__name__", work))
            return {_ERROR: np.array([_named(error)], dtype=object)}

    return told


def _telling_class(work: Any) -> Any:
    """Do the same for the calls of a class's instances."""
    return type(work.__name__, (work,), {"__call__": _telling(work.__call__)})
