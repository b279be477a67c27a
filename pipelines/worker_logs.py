"""Logs of worker processes as JSON: Ray writes the lines, this adds what only we know.

Ray's own structured logging puts time, job, worker, node and task into each line of the log files
of its workers (`ray.LoggingConfig`). A training worker adds rank, MLflow's run and its address.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

__all__ = ["label_records", "label_training_worker", "logging_options", "quiet_start"]

_log = logging.getLogger(__name__)


def logging_options() -> dict[str, Any]:
    """Return what `ray.init` needs so that the workers of this command log as the command does."""
    from pipelines.log_format import logs_as_json

    if not logs_as_json():
        return {}
    import ray

    config = ray.LoggingConfig(
        encoding="JSON", log_level="INFO", additional_log_standard_attrs=["name"]
    )
    return {"logging_config": config}


@contextmanager
def quiet_start(*, debug: bool) -> Iterator[None]:
    """Keep what Ray says when it starts out of our lines; its structured logging makes it talk."""
    from pipelines.log_format import logs_as_json

    before = logging.root.manager.disable
    if logs_as_json() and not debug:
        logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class _Labels(logging.Filter):
    """Adds keys to records and replaces passwords in them; lets all of them through."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__()
        self._fields = fields

    def filter(self, record: logging.LogRecord) -> bool:
        from pipelines.config import redact_uri

        record.msg, record.args = redact_uri(record.getMessage()), ()
        record.time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        record.level = record.levelname.lower()
        for name, value in self._fields.items():
            setattr(record, name, value)
        return True


def label_records(**fields: Any) -> None:
    """Put keys into every line that this worker process logs from here on.

    Args:
        fields: for example ``rank``, ``node`` and ``run_id``.
    """
    labels = _Labels(fields)
    for logger in _loggers():
        for handler in logger.handlers:
            for old in [each for each in handler.filters if isinstance(each, _Labels)]:
                handler.removeFilter(old)  # of the attempt before, in a process that is used again
            handler.addFilter(labels)


def _loggers() -> list[logging.Logger]:
    """Return the loggers that Ray gives handlers to."""
    return [logging.getLogger(name) for name in (None, "ray", "ray.train")]


def _plain_lines_as_json() -> None:
    """Put JSON in the place of the plain lines that Ray Train sets up in its workers."""
    from ray._common.filters import CoreContextFilter
    from ray._common.formatters import JSONFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter())
    handler.addFilter(CoreContextFilter())
    for logger in _loggers():
        for old in logger.handlers[:]:
            if isinstance(old, logging.StreamHandler) and not isinstance(old, logging.FileHandler):
                logger.removeHandler(old)
                logger.addHandler(handler)


def label_training_worker(run_id: str, rank: int, world_size: int, *, as_json: bool) -> None:
    """Say in every line of this worker's log which worker of which run it is, and that it began.

    Args:
        run_id: of MLflow.
        rank: of the worker.
        world_size: number of workers.
        as_json: whether the command writes JSON.
    """
    from ray.util import get_node_ip_address

    if as_json:
        _plain_lines_as_json()
    label_records(stage="train", run_id=run_id, rank=rank, node=get_node_ip_address())
    _log.info("worker %d of %d has started", rank, world_size)
