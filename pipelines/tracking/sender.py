"""Sends rows of a metrics file to MLflow from a thread of its own.

In: rows that are in the file already. Out: the same in MLflow, none twice. A server that is away or
slow holds nothing up: what was not sent is in the file, and the thread tries again until the server
is back. What is still missing when the process ends, `sync_metrics` sends.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.config import redact_uri
from pipelines.tracking.client import client_of, reason_of, tracking_errors
from pipelines.tracking.metrics import send_missing_rows, send_rows

if TYPE_CHECKING:
    from pipelines.metrics_log import MetricsLog

__all__ = ["MetricsSender"]

_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_CLOSING_S = 5.0

_log = logging.getLogger(__name__)


class MetricsSender:
    """Begins by sending what an earlier process may have left; then sends what is added."""

    def __init__(
        self,
        uri: str,
        run_id: str,
        log: "MetricsLog",
        *,
        pauses_s: Sequence[float] = _PAUSES_S,
        make_client: Callable[[str], Any] = client_of,
    ) -> None:
        """Start nothing yet.

        Args:
            uri: tracking URI.
            run_id: MLflow run.
            log: the file; rows must be in it before they are added here.
            pauses_s: between tries while the server is away; the last one repeats.
            make_client: of the URI.
        """
        self._uri, self._run_id, self._log = uri, run_id, log
        self._pauses_s, self._make_client = tuple(pauses_s), make_client
        self._new: list[dict[str, float]] = []
        self._lock = threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._behind = True
        self._failures = 0

    @property
    def is_away(self) -> bool:
        """Whether the last try has failed."""
        return self._failures > 0

    def add(self, rows: list[dict[str, float]]) -> None:
        """Take rows to send; returns at once."""
        with self._lock:
            self._new += rows
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow-metrics", daemon=True)
            self._thread.start()
        self._wake.set()

    def close(self) -> None:
        """Send what has been added, if the server is there; waits for at most some seconds."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_CLOSING_S)

    def _work(self) -> None:
        client = self._make_client(self._uri)
        while True:
            self._wake.wait()
            self._wake.clear()
            while not self._sent_all(client):
                pause = self._pauses_s[min(self._failures, len(self._pauses_s)) - 1]
                if self._closing.wait(pause):
                    return
            if self._closing.is_set():
                return

    def _sent_all(self, client: Any) -> bool:
        """Try once; the first failure of a row of them is told."""
        with self._lock:
            rows, self._new = self._new, []
        shown = redact_uri(self._uri)
        try:
            if self._behind:
                send_missing_rows(client, self._run_id, self._log.rows())
            else:
                send_rows(client, self._run_id, rows)
        except tracking_errors() as error:
            if not self.is_away:
                reason = reason_of(error)
                _log.warning("metrics kept for later, MLflow at %s failed: %s", shown, reason)
            self._behind = True
            self._failures += 1
            return False
        if self.is_away:
            _log.warning("MLflow at %s is back and has all metrics so far", shown)
        self._behind, self._failures = False, 0
        return True
