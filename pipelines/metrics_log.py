"""Training metrics on their way from the workers to a file, to MLflow and to the terminal.

Workers report rows to Ray's controller. There `ReportCallback` appends them to a JSON-lines file,
which is the truth, then sends them to MLflow and to a small actor that the driver polls to draw
progress. Steps that a resumed run repeats are written once. Workers never import mlflow.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.train import UserCallback

from pipelines import tracking
from pipelines.progress import stage_progress

__all__ = ["MetricsLog", "ProgressBoard", "ReportCallback", "watch_board"]

_POLL_INTERVAL_S = 0.5


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
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            if torn and self.path.stat().st_size:
                file.write("\n")
            file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)


class ProgressBoard:
    """The actor between the controller, who knows the progress, and the driver, who shows it."""

    def __init__(self) -> None:
        self._latest: tuple[int, str] = (0, "")

    def post(self, done: int, note: str) -> None:
        """Put up how far training is."""
        self._latest = (done, note)

    def read(self) -> tuple[int, str]:
        """Read it."""
        return self._latest


class ReportCallback(UserCallback):  # type: ignore[misc]
    """Takes the workers' reports in Ray's controller process."""

    def __init__(self, *, log_path: Path, board: Any, tracking_uri: str, run_id: str) -> None:
        self._log_path, self._board = log_path, board
        self._tracking_uri, self._run_id = tracking_uri, run_id
        self._last_step: int | None = None

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
            row = metrics[0]["rows"][-1]
            note = (
                f"loss {row['loss']:.4f}  grad {row['grad_norm']:.2f}  "
                f"{row['clips'] / row['seconds']:.1f} clips/s"
            )
            self._board.post.remote(done, note)
        if not rows:
            return
        self._last_step = int(rows[-1]["step"])
        log.append(rows)
        tracking.log_rows(self._tracking_uri, self._run_id, rows)


@contextlib.contextmanager
def watch_board(board: Any, *, title: str, total: int) -> Iterator[None]:
    """Draw the progress that a `ProgressBoard` actor holds while the block runs."""
    stop = threading.Event()
    with stage_progress(title, total) as progress:

        def poll() -> None:
            while not stop.wait(_POLL_INTERVAL_S):
                try:
                    done, note = ray.get(board.read.remote(), timeout=10)
                except (ray.exceptions.RayError, TimeoutError):
                    continue  # the next poll tries again; training itself reports real failures
                progress.update(done, note)

        watcher = threading.Thread(target=poll, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join(timeout=2 * _POLL_INTERVAL_S)
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):  # only the last picture
            progress.update(*ray.get(board.read.remote(), timeout=10))
