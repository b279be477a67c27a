"""Progress for people: a live bar in a terminal, plain lines everywhere else. Always on stderr."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipelines.log_format import logs_as_json

__all__ = ["StageProgress", "console", "stage_progress"]

_PLAIN_INTERVAL_S = 5.0
_ETA_FROM = 0.1


class _Console(Console):
    """A console that shows no password of a URI."""

    def print(self, *objects: Any, **options: Any) -> None:
        from pipelines.config import redact_uri

        shown = (redact_uri(item) if isinstance(item, str) else item for item in objects)
        super().print(*shown, **options)


console = _Console(stderr=True, highlight=False, soft_wrap=True)
"""Where everything for people goes; stdout is kept for --json."""


class StageProgress:
    """Shows how far one piece of work is."""

    def __init__(self, title: str, total: int, bar: Progress | None, *, eta: bool = True) -> None:
        self._title, self._total, self._bar, self._eta = title, total, bar, eta
        self._task: TaskID | None = None
        self._done = 0
        self._started = time.monotonic()
        self._last_line = self._started
        if bar is not None:
            self._task = bar.add_task(title, total=total, note="")

    def update(self, done: int, note: str = "") -> None:
        """Say that ``done`` of the total is finished; ``note`` stands beside the bar."""
        self._done = done
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if now - self._last_line >= _PLAIN_INTERVAL_S:
            self._last_line = now
            self._print(note, now)

    def advance(self, note: str = "") -> None:
        """Say that one more is finished."""
        self.update(self._done + 1, note)

    def _print(self, note: str, now: float) -> None:
        elapsed = now - self._started
        # the first pieces carry the start-up of the workers, so they tell nothing about the rest
        known = self._done >= _ETA_FROM * self._total and self._done < self._total
        left = elapsed / max(self._done, 1) * (self._total - self._done)
        eta = f", about {left:.0f} s left" if known and self._eta else ""
        text = f"{self._title}: {self._done}/{self._total}, {elapsed:.0f} s{eta}"
        console.print(f"{text}  {note}" if note else text, markup=False)


@contextmanager
def stage_progress(title: str, total: int, *, eta: bool = True) -> Iterator[StageProgress]:
    """Show progress while the block runs.

    Args:
        title: what is being done.
        total: how many pieces of work there are.
        eta: say how long it will take, from the pieces done since the start; without, the notes
            must, as they do where some pieces were done by an earlier command.
    """
    if logs_as_json() or not console.is_terminal:
        yield StageProgress(title, total, None, eta=eta)
        return
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *([TimeRemainingColumn()] if eta else []),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        yield StageProgress(title, total, bar)
