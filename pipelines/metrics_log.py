"""Training metrics on their way from the workers to a file, to MLflow and to the terminal.

Workers report rows to Ray's controller. There `ReportCallback` appends them to a JSON-lines file,
which is the truth, then sends them to MLflow and to a small actor that the driver polls to draw
progress. Steps that a resumed run repeats are written once. Workers never import mlflow.
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.train import UserCallback

from cil.errors import CilError
from pipelines import prometheus, tracking
from pipelines.progress import stage_progress
from pipelines.termination import Terminated, was_terminated

__all__ = [
    "MetricsLog",
    "ProgressBoard",
    "ReportCallback",
    "SessionRate",
    "run_and_watch",
    "training_note",
]

_POLL_INTERVAL_S = 0.5
_REPORTS_OF_RATE = 20
_AWAY = "  MLflow is away, metrics wait in the file"

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


class MetricsLog:
    """Rows of metrics, one per optimiser step, in a JSON-lines file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, float]]:
        """Return all rows, one per step, in order; a torn last line is left out."""
        if not self.path.exists():
            return []
        rows: dict[int, dict[str, float]] = {}
        for line in self.path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                rows.setdefault(int(row["step"]), row)
            except (ValueError, KeyError, TypeError):
                continue  # the process died while it wrote this line; the step is reported again
        return [rows[step] for step in sorted(rows)]

    def losses(self) -> list[float]:
        """Return the loss of every step."""
        return [row["loss"] for row in self.rows()]

    def append(self, rows: list[dict[str, float]]) -> None:
        """Add rows and flush them to the operating system."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if self._is_torn():
                file.write("\n")
            file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)

    def _is_torn(self) -> bool:
        """Tell whether the last line has no end; a long file is not read for that."""
        with self.path.open("rb") as file:
            if not file.seek(0, os.SEEK_END):
                return False
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"


class ProgressBoard:
    """The actor between the controller, who knows the progress, and the driver, who shows it."""

    def __init__(self, done: int = 0) -> None:
        """Begin with the steps that an earlier command has done."""
        self._latest: tuple[int, str] = (done, "")

    def post(self, done: int, note: str) -> None:
        """Put up how far training is."""
        self._latest = (done, note)

    def read(self) -> tuple[int, str]:
        """Read it."""
        return self._latest


class SessionRate:
    """How fast training is now: from the reports of this session alone, the last few of them.

    What an earlier command has done, and the time that this one took to start, do not count.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque(maxlen=_REPORTS_OF_RATE)
        self._num_steps = 0

    def add(self, rows: list[dict[str, float]]) -> None:
        """Take the steps of a report that has just come."""
        now = self._clock()
        if not self._marks:  # the first report comes when its steps are done
            self._marks.append((now - sum(row["seconds"] for row in rows), 0))
        self._num_steps += len(rows)
        self._marks.append((now, self._num_steps))

    def seconds_left(self, num_steps: int) -> float:
        """Return the time that a number of steps will take, in seconds."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (end - start) / max(after - before, 1) * num_steps


def training_note(rows: list[dict[str, float]], seconds_left: float) -> str:
    """Say how training goes in one line.

    Args:
        rows: of the last report, at least one.
        seconds_left: until the last step.
    """
    row = rows[-1]
    speed, waits = _speed(rows)
    left = f"  about {seconds_left:.0f} s left" if seconds_left > 0 else ""
    return (
        f"loss {row['loss']:.4f}  grad {row['grad_norm']:.2f}  {speed:.1f} clips/s  "
        f"data wait {waits:.0%}{left}"
    )


def _speed(rows: list[dict[str, float]]) -> tuple[float, float]:
    """Return clips per second, and the share of the time that waited for data, 0 to 1."""
    seconds = sum(each["seconds"] for each in rows)
    if not seconds:
        return 0.0, 0.0
    waited = sum(each.get("data_wait_s", 0.0) for each in rows)
    return sum(each["clips"] for each in rows) / seconds, waited / seconds


class ReportCallback(UserCallback):  # type: ignore[misc]
    """Takes the workers' reports in Ray's controller process."""

    def __init__(
        self,
        *,
        log_path: Path,
        board: Any,
        tracking_uri: str,
        run_id: str,
        num_steps: int,
        keep: Callable[[Path], None] | None = None,
        watch: Any = None,
    ) -> None:
        """Take reports.

        Args:
            log_path: the metrics file.
            board: handle of the `ProgressBoard`.
            tracking_uri: of MLflow.
            run_id: MLflow run.
            num_steps: steps of the run.
            keep: called with the folder of each committed checkpoint; its errors are warnings.
            watch: the `LossWatch` that looks at the losses.
        """
        self._log_path, self._board, self._watch = log_path, board, watch
        self._tracking_uri, self._run_id = tracking_uri, run_id
        self._num_steps, self._keep = num_steps, keep
        self._last_step: int | None = None
        self._rate = SessionRate()
        self._sender: tracking.MetricsSender | None = None  # has a thread, so made where it works

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Write the new rows of rank 0; losses in them are averages over all ranks."""
        log = MetricsLog(self._log_path)
        if self._last_step is None:
            self._last_step = max((int(row["step"]) for row in log.rows()), default=-1)
        rows = [row for row in metrics[0]["rows"] if row["step"] > self._last_step]
        if metrics[0]["rows"]:
            done = int(metrics[0]["rows"][-1]["step"]) + 1
            self._rate.add(metrics[0]["rows"])
            left = self._rate.seconds_left(self._num_steps - done)
            away = self._sender is not None and self._sender.is_away
            note = training_note(metrics[0]["rows"], left) + (_AWAY if away else "")
            self._board.post.remote(done, note)
            self._send(metrics[0]["rows"])
        if checkpoint is not None and self._keep is not None:
            try:
                self._keep(Path(checkpoint.path))
            except (OSError, CilError) as error:
                _log.warning("a checkpoint will not be validated: %s", error)
        if not rows:
            return
        self._last_step = int(rows[-1]["step"])
        if self._watch is not None:
            self._watch.see(rows, log.rows)
        log.append(rows)
        if self._sender is None:
            self._sender = tracking.MetricsSender(self._tracking_uri, self._run_id, log)
        self._sender.add(rows)

    def _send(self, rows: list[dict[str, float]]) -> None:
        """Send what Prometheus shows of the last report."""
        speed, waits = _speed(rows)
        prometheus.set_loss(rows[-1]["loss"], run_id=self._run_id)
        prometheus.set_clips_per_second(speed, run_id=self._run_id, stage="train")
        prometheus.set_data_wait_share(waits, run_id=self._run_id)


def run_and_watch(
    action: Callable[[], Result],
    board: Any,
    *,
    title: str,
    total: int,
    beside: Callable[[], str] | None = None,
) -> Result:
    """Run something in a thread while this one draws the progress that a `ProgressBoard` holds.

    In a thread, because in the main one Ray Train takes Ctrl-C for itself and ends the process with
    code 0 as if all were done. Here Ctrl-C interrupts the drawing, and the command says so.

    Args:
        action: what to run, for example ``trainer.fit``.
        board: handle of the actor.
        title: what is being done.
        total: how many steps there are.
        beside: called at every look; what it returns stands behind the note.

    Returns:
        What ``action`` returned; what it raised is raised here.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    with stage_progress(title, total, eta=False) as progress:
        while thread.is_alive():
            thread.join(_POLL_INTERVAL_S)
            more = beside() if beside is not None else ""
            # a failed poll loses one picture; real failures come from the action itself
            with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
                done, note = ray.get(board.read.remote(), timeout=10)
                progress.update(done, f"{note}  [{more}]" if more else note)
            if was_terminated():  # Ray may have made another error of it, which is passed over here
                raise Terminated
    if errors:
        raise errors[0]
    return results[0]
