"""The load of the driver's machine in MLflow: CPU, memory, disk, network and GPUs, as time series.

In: an interval. Out: rows in a file of the training's folder, and the same in MLflow as
``system/...``, as MLflow's own monitor names them. That one ends for good when the server is away;
this one goes on, as the metrics of training do.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipelines.config import RunConfig
from pipelines.tracking.client import client_of
from pipelines.tracking.metrics import LOAD_PREFIX
from pipelines.tracking.sender import MetricsSender
from pipelines.tracking.store import tracking_uri

if TYPE_CHECKING:
    from pipelines.metrics_log import MetricsLog

__all__ = ["record_load"]


@contextmanager
def record_load(config: RunConfig, run_id: str, log: "MetricsLog") -> Iterator[None]:
    """Record the load of this machine while the block runs.

    Args:
        config: the run; ``tracking.system_metrics_s`` is the interval, 0 records nothing.
        run_id: the training's run.
        log: where rows go first; numbered on from those that are there.
    """
    interval_s = config.tracking.system_metrics_s
    if not interval_s:
        yield
        return
    uri, ended = tracking_uri(config), threading.Event()
    sender = MetricsSender(uri, run_id, log)
    thread = threading.Thread(
        target=_record, args=(uri, log, sender, interval_s, ended), name="load", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(interval_s)
        sender.close()


def _record(
    uri: str, log: "MetricsLog", sender: MetricsSender, interval_s: float, ended: threading.Event
) -> None:
    client_of(uri)
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor("", tracking_uri=uri)  # measures; it is not started
    step = max((int(row["step"]) for row in log.rows()), default=-1) + 1
    while not ended.wait(interval_s):
        monitor.collect_metrics()
        load = {f"{LOAD_PREFIX}{name}": v for name, v in monitor.aggregate_metrics().items()}
        for part in monitor.monitors:
            part.clear_metrics()
        row = {**load, "step": step, "time_s": time.time()}
        log.append([row])
        sender.add([row])
        step += 1
