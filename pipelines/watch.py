"""Warnings on their way from workers and Ray's controller to the terminal and into the report.

Each worker says where it is to an object in its own process (`Heartbeat`), a thread of which tells
a small actor (`WatchBoard`) every few seconds: a step pays an assignment, nothing more. The
controller puts up losses that stand out (`LossWatch`). A thread of the driver reads the actor
(`watching`), prints what is new and writes it to a file in the train folder.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipelines.config import RunConfig
from pipelines.guards import Beat, LossSpike, SpikeRule, Stall, find_stall
from pipelines.progress import console
from pipelines.settings import TrainConfig

__all__ = ["Heartbeat", "LossWatch", "WatchBoard", "start_heartbeat", "watching"]

_POLL_S = 0.5
_SLOWEST_BEAT_S = 5.0


class Heartbeat:
    """Says where a worker is; use it by ``with``."""

    def __init__(
        self,
        post: Callable[[Beat], object],
        *,
        rank: int,
        world_size: int,
        node: str,
        interval_s: float = 1.0,
    ) -> None:
        """Start telling.

        Args:
            post: takes a beat and returns at once; called by a thread.
            rank: number of this worker.
            world_size: workers.
            node: where this worker is.
            interval_s: time from one beat to the next, in seconds.
        """
        self._post, self._interval_s = post, interval_s
        self._now = Beat(
            rank=rank, world_size=world_size, node=node, step=0, phase="start", count=0
        )
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="cil-heartbeat", daemon=True)

    def at(self, step: int, phase: str) -> None:
        """Begin a phase of a step."""
        self._now = replace(self._now, step=step, phase=phase, count=self._now.count + 1)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._thread.join()

    def _tell(self) -> None:
        self._post(self._now)
        while not self._closed.wait(self._interval_s):
            self._post(self._now)


def start_heartbeat(board: Any, train: TrainConfig, context: Any) -> Heartbeat:
    """Make the heartbeat of a worker of Ray Train.

    Args:
        board: handle of the `WatchBoard`.
        train: training settings.
        context: what ``ray.train.get_context()`` returns.
    """
    import ray

    node = ray.get_runtime_context().get_node_id()
    return Heartbeat(
        board.post.remote,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        node=f"{ray.util.get_node_ip_address()} ({node[:12]})",
        interval_s=min(max(train.stall_warning_s / 10, 0.1), _SLOWEST_BEAT_S),
    )


class WatchBoard:
    """The actor between workers and controller, who know, and the driver, who warns."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beats: dict[int, Beat] = {}
        self._changed: dict[int, float] = {}
        self._heard: dict[int, float] = {}
        self._spikes: list[tuple[LossSpike, str]] = []
        self._stopped: dict[str, str] | None = None

    def stop(self, failure: dict[str, str]) -> None:
        """Take a failure of a worker that would come again; the first one counts."""
        self._stopped = self._stopped or failure

    def stopped(self) -> dict[str, str] | None:
        """Return the failure that workers need not be started again after."""
        return self._stopped

    def post(self, beat: Beat) -> None:
        """Take a worker's beat."""
        now, last = self._clock(), self._beats.get(beat.rank)
        if last is None or beat.count < last.count:  # the workers were started again
            for rank in [rank for rank in self._beats if rank >= beat.world_size]:
                del self._beats[rank]
        if last is None or last.count != beat.count:
            self._changed[beat.rank] = now
        self._beats[beat.rank], self._heard[beat.rank] = beat, now

    def warn(self, spike: LossSpike, text: str) -> None:
        """Put up a loss that stands out."""
        self._spikes.append((spike, text))

    def read(self, limit_s: float) -> tuple[list[tuple[LossSpike, str]], Stall | None]:
        """Take the spikes that are new, and look for workers that stand still."""
        spikes, self._spikes = self._spikes, []
        stall = find_stall(
            self._beats,
            changed=self._changed,
            heard=self._heard,
            now=self._clock(),
            limit_s=limit_s,
        )
        return spikes, stall


class LossWatch:
    """Looks at rows of metrics in Ray's controller process."""

    def __init__(self, config: RunConfig, board: Any) -> None:
        self._config, self._board = config, board
        self._rule = SpikeRule(config.train)
        self._started = False

    def see(
        self, rows: list[dict[str, float]], before: Callable[[], list[dict[str, float]]]
    ) -> None:
        """Look at new rows.

        Args:
            rows: new ones.
            before: returns all that were written before; called once, for after a restart.
        """
        if not self._started:
            self._rule.remember(before())
            self._started = True
        for spike in self._rule.see(rows):
            self._board.warn.remote(spike, spike.text(self._keys(spike.step)))

    def _keys(self, step: int) -> list[str]:
        from pipelines.batches import BatchReader
        from pipelines.dataset import open_training_data

        data = open_training_data(self._config)
        reader = BatchReader(
            data.readers,
            global_batch_size=self._config.train.global_batch_size,
            seed=self._config.seed,
        )
        return reader.keys(step)


@contextmanager
def watching(board: Any, path: Path, *, limit_s: float) -> Iterator[list[str]]:
    """Print warnings while the block runs, and write them down.

    Args:
        board: handle of the `WatchBoard`.
        path: JSON-lines file that warnings are added to.
        limit_s: how long no worker may have gone on, in seconds.

    Yields:
        The warnings so far.
    """
    warnings: list[str] = []
    closed = threading.Event()
    thread = threading.Thread(
        target=_watch, args=(board, path, limit_s, warnings, closed), daemon=True
    )
    thread.start()
    try:
        yield warnings
    finally:
        closed.set()
        thread.join()


def _watch(
    board: Any, path: Path, limit_s: float, warnings: list[str], closed: threading.Event
) -> None:
    import ray

    stalled = False
    last = False
    while not last:
        last = closed.wait(_POLL_S)  # what came since the last look is still read
        # a failed poll is tried again: this only looks on
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            spikes, stall = ray.get(board.read.remote(limit_s), timeout=10)
            for spike, text in spikes:
                _warn({"warning": "loss spike", "step": spike.step, "text": text}, path, warnings)
            if stall is not None and not stalled and not last:
                record = {
                    "warning": "stalled",
                    "ranks": [beat.rank for beat in stall.behind],
                    "text": stall.text(),
                }
                _warn(record, path, warnings)
            stalled = stall is not None


def _warn(record: dict[str, Any], path: Path, warnings: list[str]) -> None:
    warnings.append(record["text"])
    console.print("[yellow]warning[/]", end=" ")
    console.print(f"{record['warning']}: {record['text']}", markup=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, sort_keys=True) + "\n")
