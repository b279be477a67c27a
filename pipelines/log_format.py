"""Lines for people as JSON: one object per line on stderr, with what the command is doing.

In: text that anything writes to stderr, and records of Python's logging. Out, with
``--log-format json`` or CIL_LOG_FORMAT=json, lines such as

    {"time": "2026-01-31T02:00:07.123+00:00", "level": "info", "message": "train: steps: 40/80",
     "command": "retrain", "stage": "train", "run_id": "0c4f"}

Passwords in URIs are replaced. stdout is left alone. What a command is doing is known to the whole
process and not to one context: the threads that a stage starts write lines, too.
"""

import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

__all__ = [
    "FORMATS",
    "VARIABLE",
    "JsonLines",
    "chosen_format",
    "json_line",
    "log_fields",
    "logs_as_json",
    "note_run",
    "only_our_handlers",
    "stderr_lines",
]

FORMATS = ("text", "json")
VARIABLE = "CIL_LOG_FORMAT"

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_ERROR = re.compile(
    r"error\b|fail\b|Traceback |cil[\w ]*: error:"
    r"|(?:Required|Unrecognized|Invalid|Missing|Ambiguous) (?:option|argument)"
    r"|(?:Value|Parsing) error"
)
_WARNING = re.compile(r"warn(?:ing)?\b|interrupted;|ended by SIGTERM|[^\n]*\b\w*Warning: ")

_fields: dict[str, str | None] = {"command": None, "stage": None, "run_id": None}
_state = {"json": False}


def chosen_format(given: str | None) -> str:
    """Return the format of a command: its option, else the environment variable, else text.

    Raises:
        ConfigError: the variable names no format.
    """
    from cil.errors import ConfigError
    from pipelines.config import environment

    name = given or environment(VARIABLE) or "text"
    if name not in FORMATS:
        raise ConfigError(f"{VARIABLE} must be one of {', '.join(FORMATS)}, got {name!r}")
    return name


def logs_as_json() -> bool:
    """Tell whether this command writes JSON."""
    return _state["json"]


@contextmanager
def log_fields(**fields: str | None) -> Iterator[None]:
    """Put ``stage`` or ``run_id`` into every line while the block runs."""
    before = {name: _fields[name] for name in fields}
    _fields.update(fields)
    try:
        yield
    finally:
        _fields.update(before)


def note_run(run_id: str) -> None:
    """Put MLflow's run into the lines from here on, until a block of `log_fields` puts it back."""
    _fields["run_id"] = run_id


def json_line(level: str, message: str, **more: Any) -> str:
    """Write one line.

    Args:
        level: debug, info, warning, error or critical.
        message: text; passwords in its URIs are replaced, colours and margins removed.
        more: further keys.
    """
    from pipelines.config import redact_uri

    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "message": redact_uri(_ESCAPES.sub("", message).strip("\r\n ")),
        **_fields,
        **{
            name: redact_uri(each) if isinstance(each, str) else each for name, each in more.items()
        },
    }
    return json.dumps(line, ensure_ascii=False, default=str)


class JsonLines(io.TextIOBase):
    """A text stream in the place of stderr: what is written up to a line end is one object."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._begun: dict[int, str] = {}
        self._lock = threading.RLock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream behind."""
        return self._stream.encoding or "utf-8"

    def writable(self) -> bool:
        """It is."""
        return True

    def isatty(self) -> bool:
        """Never: no bars and no colours."""
        return False

    def fileno(self) -> int:
        """Descriptor of the stream behind, for child processes and crash reports."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Take a piece of text; pieces of several threads are kept apart."""
        with self._lock:
            whole = self._begun.pop(threading.get_ident(), "") + text
            if whole.endswith("\n"):
                self._send(whole)
            elif whole:
                self._begun[threading.get_ident()] = whole
        return len(text)

    def flush(self) -> None:
        """Flush whole lines."""
        self._stream.flush()

    def finish(self) -> None:
        """Write what has no line end yet."""
        with self._lock:
            for text in self._begun.values():
                self._send(text)
            self._begun.clear()

    def record(self, level: str, message: str, **more: Any) -> None:
        """Write a line whose level is known."""
        with self._lock:
            self._stream.write(json_line(level, message, **more) + "\n")
            self._stream.flush()

    def _send(self, text: str) -> None:
        plain = _ESCAPES.sub("", text).strip("\r\n ")
        if not plain:
            return
        parsed = [_parsed(line) for line in plain.splitlines()]
        if None in parsed:
            self.record(_level(plain), plain)
            return
        for line in parsed:  # of a worker or a job that writes JSON itself
            assert line is not None
            self.record(**_as_ours(line))


class _LogHandler(logging.Handler):
    """Python's logging into the same lines, with the level that a record has."""

    def __init__(self, lines: JsonLines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
            self._lines.record(record.levelname.lower(), text, logger=record.name)
        except Exception:  # as every handler of logging does: a log line must stop no run
            self.handleError(record)


def only_our_handlers() -> None:
    """Take away the handlers that Ray gave to its own logger and to all: lines would come twice."""
    for logger in (logging.getLogger(), logging.getLogger("ray")):
        for handler in logger.handlers[:]:
            if type(handler) is logging.StreamHandler:
                logger.removeHandler(handler)
    logging.getLogger("ray").propagate = True


@contextmanager
def stderr_lines(log_format: str, *, command: str) -> Iterator[None]:
    """Write everything that goes to stderr in one format while a command runs.

    Args:
        log_format: text, which changes nothing, or json.
        command: for the lines.
    """
    with log_fields(command=command, stage=None, run_id=None):
        if log_format != "json":
            yield
            return
        before, root = sys.stderr, logging.getLogger()
        lines = JsonLines(before)
        handler = _LogHandler(lines)
        sys.stderr, _state["json"] = lines, True
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
            sys.stderr, _state["json"] = before, False
            lines.finish()


def _parsed(line: str) -> dict[str, Any] | None:
    """Read a line that is an object with a message; None for all else."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "message" in found else None


def _as_ours(line: dict[str, Any]) -> dict[str, Any]:
    """Give a line of Ray's structured logging our names of time, level and logger."""
    level = line.pop("levelname", "info").lower()
    since_1970 = line.pop("timestamp_ns", None)
    line.pop("asctime", None)
    if "name" in line:
        line["logger"] = line.pop("name")
    if since_1970 is not None:
        line.setdefault("time", _iso(since_1970 / 1e9))
    return {"level": level, **line}


def _iso(since_1970: float) -> str:
    return datetime.fromtimestamp(since_1970, UTC).isoformat(timespec="milliseconds")


def _level(text: str) -> str:
    if _ERROR.match(text):
        return "error"
    return "warning" if _WARNING.match(text) else "info"
