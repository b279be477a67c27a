"""Our own Prometheus metrics, on the metrics ports of Ray's nodes, where `ray_` is put before them.

Names and labels are in the table of `infra/README.md`. Without a Ray session nothing happens, and a
metric that cannot be sent never fails a run.
"""

import logging
import sys
from functools import cache
from typing import Any

__all__ = [
    "NO_RUN",
    "add_gate_decision",
    "add_quarantined",
    "set_clips_per_second",
    "set_data_wait_share",
    "set_loss",
]

NO_RUN = "none"
"""The label ``run_id`` of what belongs to no run of MLflow."""

_log = logging.getLogger(__name__)


def set_loss(value: float, *, run_id: str) -> None:
    """Send the loss of the last step that was reported."""
    _set("cil_loss", "Loss of the last step that was reported", value, run_id=run_id)


def set_clips_per_second(value: float, *, run_id: str, stage: str) -> None:
    """Send how many clips a stage gets through, in clips per second."""
    _set(
        "cil_clips_per_second",
        "Clips that a stage gets through in a second",
        value,
        run_id=run_id,
        stage=stage,
    )


def set_data_wait_share(value: float, *, run_id: str) -> None:
    """Send the share of the time of training that waits for data, 0 to 1."""
    _set("cil_data_wait_share", "Share of training that waits for data", value, run_id=run_id)


def add_quarantined(count: int, *, run_id: str) -> None:
    """Count videos that were refused."""
    if count > 0:
        _add("cil_quarantined_total", "Videos that were refused", count, run_id=run_id)


def add_gate_decision(*, promoted: bool) -> None:
    """Count a decision of the gate."""
    decision = "promoted" if promoted else "refused"
    _add("cil_gate_decisions_total", "Decisions of the gate", 1, decision=decision)


def _set(name: str, description: str, value: float, **labels: str) -> None:
    metric = _metric("Gauge", name, description, tuple(labels))
    if metric is not None:
        _try(lambda: metric.set(float(value), tags=labels), name)


def _add(name: str, description: str, value: float, **labels: str) -> None:
    metric = _metric("Counter", name, description, tuple(labels))
    if metric is not None:
        _try(lambda: metric.inc(float(value), tags=labels), name)


def _metric(kind: str, name: str, description: str, labels: tuple[str, ...]) -> Any:
    """Return the metric, or None in a process that is not connected to Ray."""
    ray = sys.modules.get("ray")  # whoever has a session has imported it
    if ray is None or not ray.is_initialized():
        return None
    return _try(lambda: _made(kind, name, description, labels), name)


@cache
def _made(kind: str, name: str, description: str, labels: tuple[str, ...]) -> Any:
    from ray.util import metrics

    return getattr(metrics, kind)(name, description=description, tag_keys=labels)


def _try(action: Any, name: str) -> Any:
    try:
        return action()
    except Exception as error:  # whatever it is, the run matters more than its metrics
        _log.debug("metric %s not sent: %s: %s", name, type(error).__name__, error)
        return None
