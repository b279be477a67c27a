"""Reading batches ahead in a background thread while the step computes.

What is read does not change: a batch depends on the number of its step alone. An error of the
background thread is raised by the step that needs the batch, those before it are taken.
"""

import threading
import time
from collections import deque
from types import TracebackType
from typing import Self

from pipelines.batches import Batch, BatchReader, BatchSource
from pipelines.config import RunConfig
from pipelines.dataset import TrainingData

__all__ = ["Prefetch", "read_ahead"]


class Prefetch:
    """A batch source that reads from another one ahead of time; close it, or use it by ``with``."""

    def __init__(
        self, source: BatchSource, *, first_step: int, num_steps: int, num_batches: int
    ) -> None:
        """Start reading.

        Args:
            source: where batches come from; its ``batch`` is called by one thread at a time.
            first_step: step of the first batch that will be asked for.
            num_steps: batches of this and later steps are not read.
            num_batches: batches that wait at most, one more is being read; 0 starts no thread.
        """
        self._source, self._num_batches = source, num_batches
        self.last_wait_s = 0.0
        """Time that the last call of `batch` waited for data, in seconds."""
        self._next_step = first_step
        self._steps = range(first_step, num_steps)
        self._ready: deque[Batch | BaseException] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        if num_batches:
            self._thread = threading.Thread(target=self._read, name="cil-prefetch", daemon=True)
            self._thread.start()

    def batch(self, step: int) -> Batch:
        """Return this worker's share of a step; steps are taken in order, each once.

        Raises:
            BaseException: whatever reading this batch met.
        """
        assert step == self._next_step, (step, self._next_step)
        assert not self._closed
        started = time.perf_counter()
        item: Batch | BaseException
        if self._thread is None or step not in self._steps:
            item = self._source.batch(step)
        else:
            with self._changed:
                self._changed.wait_for(lambda: self._ready)
                # An error stays, as the thread has ended and nothing comes after it.
                failed = isinstance(self._ready[0], BaseException)
                item = self._ready[0] if failed else self._ready.popleft()
                self._changed.notify_all()
        self.last_wait_s = time.perf_counter() - started
        if isinstance(item, BaseException):
            raise item
        self._next_step += 1
        return item

    def keys(self, step: int) -> list[str]:
        """Return the sample keys of all clips of a step, over all workers."""
        return self._source.keys(step)

    def close(self) -> None:
        """Stop reading and wait for the thread; what was read ahead is dropped."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self) -> None:
        for step in self._steps:
            try:
                item: Batch | BaseException = self._source.batch(step)
            except BaseException as error:  # raised where the batch is needed
                item = error
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._ready) < self._num_batches)
                if self._closed:
                    return
                self._ready.append(item)
                self._changed.notify_all()
            if isinstance(item, BaseException):
                return


def read_ahead(
    config: RunConfig, data: TrainingData, *, first_step: int, rank: int, world_size: int
) -> Prefetch:
    """Start reading a worker's batches of a training run.

    Args:
        config: the run.
        data: the buckets that are trained on.
        first_step: where the run goes on, from 0.
        rank: number of this worker.
        world_size: workers.

    Raises:
        ConfigError: the batch does not divide over the workers.
    """
    source = BatchReader(
        data.readers,
        global_batch_size=config.train.global_batch_size,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        pin_memory=config.train.use_gpu,
    )
    return Prefetch(
        source,
        first_step=first_step,
        num_steps=config.train.num_steps,
        num_batches=config.read.prefetch_batches,
    )
