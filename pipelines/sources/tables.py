"""Tables of videos: rows out of CSV, JSON Lines and Parquet files, one at a time.

In: a table and the names of its columns. Out: for each row the path and the caption, or why the
row is refused, with its line number. What a path means is decided in `pipelines.sources.rows`.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from cil.errors import ConfigError
from pipelines.sources.captions import clean_caption
from pipelines.sources.names import printable
from pipelines.sources.video import SourceOptions, UnusableFileError

__all__ = ["TABLE_SUFFIXES", "Columns", "Row", "read_rows"]

TABLE_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet", ".tsv")

_PATH_COLUMNS = (
    "path",
    "video",
    "video_path",
    "file",
    "file_name",
    "filename",
    "filepath",
    "file_path",
    "url",
    "uri",
    "contenturl",
)
_CAPTION_COLUMNS = ("caption", "text", "name", "description", "prompt")
_WEBVID_COLUMNS = ("videoid", "page_dir")
_MAX_FIELD_CHARACTERS = 2**20
_MAX_LINE_CHARACTERS = 2**24


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a table."""

    line: int
    """Line of the file where the row ends, from 1; of a Parquet file the number of the row."""
    path: str
    """What the table names, as it is written there; empty if the row is refused."""
    caption: str | None
    problem: UnusableFileError | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Which columns of a table are used; names are compared without regard to case."""

    path: tuple[str, ...]
    """One column with paths, or WebVid's videoid and page_dir."""
    caption: str | None

    @classmethod
    def choose(cls, names: Sequence[str], options: SourceOptions, table: str) -> "Columns":
        """Choose among the columns of a table.

        Raises:
            ConfigError: a named column is not there, or none holds paths.
        """
        known: dict[str, str] = {}
        for name in names:
            known.setdefault(str(name).strip().casefold(), name)
        for setting in ("path_column", "caption_column"):
            column = getattr(options, setting)
            if column is not None and column not in names:
                raise ConfigError(
                    f"data.{setting}: {table} has no column {column!r}; it has {_listed(names)}"
                )
        path = cls._path_columns(known, options)
        if not path:
            raise ConfigError(
                f"data.videos: no column of {table} names files; it has {_listed(names)}; name "
                f"one by data.path_column, or call it one of {', '.join(_PATH_COLUMNS)}"
            )
        found = (known[key] for key in _CAPTION_COLUMNS if key in known and known[key] not in path)
        return cls(path=path, caption=options.caption_column or next(found, None))

    @staticmethod
    def _path_columns(known: Mapping[str, str], options: SourceOptions) -> tuple[str, ...]:
        if options.path_column is not None:
            return (options.path_column,)
        if all(key in known for key in _WEBVID_COLUMNS):
            return tuple(known[key] for key in _WEBVID_COLUMNS)
        return next(((known[key],) for key in _PATH_COLUMNS if key in known), ())

    def row(self, line: int, values: Mapping[str, Any]) -> Row:
        """Return what a row says."""
        try:
            parts = [_text(values.get(name), name) for name in self.path]
            for name, part in zip(self.path, parts, strict=True):
                if not part:
                    raise UnusableFileError("EmptyField", f"the column {name!r} is empty")
            caption = values.get(self.caption) if self.caption is not None else None
            text = None if caption is None else _text(caption, str(self.caption))
        except UnusableFileError as error:
            return Row(line=line, path="", caption=None, problem=error)
        path = parts[0] if len(parts) == 1 else f"{parts[1]}/{parts[0]}.mp4"
        return Row(line=line, path=path, caption=clean_caption(text) if text else None)


def _text(value: Any, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    kind = type(value).__name__
    raise UnusableFileError("WrongType", f"the column {column!r} holds a {kind}, not text")


def read_rows(file: IO[bytes], suffix: str, options: SourceOptions, table: str) -> Iterator[Row]:
    """Read the rows of a table.

    Args:
        file: the table, open for reading at any position.
        suffix: one of `TABLE_SUFFIXES`.
        options: names of columns.
        table: the table's name, for messages.

    Raises:
        ConfigError: the file is no such table, or its columns do not do.
    """
    if suffix in (".csv", ".tsv"):
        return _read_csv(file, options, table, delimiter="\t" if suffix == ".tsv" else ",")
    if suffix == ".parquet":
        return _read_parquet(file, options, table)
    return _read_jsonl(file, options, table)


def _read_csv(
    file: IO[bytes], options: SourceOptions, table: str, *, delimiter: str
) -> Iterator[Row]:
    with _as_text(file, newline="") as text:
        csv.field_size_limit(_MAX_FIELD_CHARACTERS)
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        yield from _csv_rows(reader, options, table)


def _csv_rows(reader: Any, options: SourceOptions, table: str) -> Iterator[Row]:
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise ConfigError(f"data.videos: the first line of {table} is not CSV: {error}") from error
    if not header:
        raise ConfigError(f"data.videos: {table} is empty; its first line must name the columns")
    names = [name.strip() for name in header]
    columns = Columns.choose(names, options, table)
    while True:
        first_line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _malformed(first_line, str(error))
            continue
        if len(fields) == len(names):
            yield columns.row(reader.line_num, dict(zip(names, fields, strict=True)))
        elif fields:  # an empty line is no row
            yield _malformed(first_line, f"{len(fields)} fields, the first line has {len(names)}")


@contextmanager
def _as_text(file: IO[bytes], newline: str) -> Iterator[IO[str]]:
    """Read a file as text; it stays open."""
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=newline)
    try:
        yield text
    finally:
        text.detach()


def _read_jsonl(file: IO[bytes], options: SourceOptions, table: str) -> Iterator[Row]:
    with _as_text(file, newline="\n") as text:
        yield from _jsonl_rows(text, options, table)


def _jsonl_rows(text: IO[str], options: SourceOptions, table: str) -> Iterator[Row]:
    columns = None
    line = 0
    while part := text.readline(_MAX_LINE_CHARACTERS):
        line += 1
        if not part.endswith("\n") and len(part) == _MAX_LINE_CHARACTERS:
            raise ConfigError(
                f"data.videos: line {line} of {table} has more than {_MAX_LINE_CHARACTERS} "
                "characters; it is not JSON Lines, which have one row per line"
            )
        if not part.strip():
            continue
        try:
            values = json.loads(part)
            if not isinstance(values, dict):
                raise ValueError(f"a {type(values).__name__}, not an object")
        except (ValueError, RecursionError) as error:
            yield _malformed(line, str(error))
            continue
        if columns is None:  # the first row that can be read stands for the header
            columns = Columns.choose(list(values), options, table)
        yield columns.row(line, values)


def _read_parquet(file: IO[bytes], options: SourceOptions, table: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        parquet = pyarrow.parquet.ParquetFile(file)
        columns = Columns.choose(parquet.schema_arrow.names, options, table)
        wanted = [*columns.path, *([columns.caption] if columns.caption else [])]
        line = 0
        for batch in parquet.iter_batches(batch_size=4096, columns=wanted):
            for values in batch.to_pylist():
                line += 1
                yield columns.row(line, values)
    except (pyarrow.ArrowException, OSError) as error:
        reason = printable(" ".join(str(error).split())[:300])
        raise ConfigError(f"data.videos: cannot read {table}: {reason}") from error


def _malformed(line: int, reason: str) -> Row:
    problem = UnusableFileError("MalformedRow", printable(reason)[:300])
    return Row(line=line, path="", caption=None, problem=problem)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(printable(str(name))[:60] for name in list(names)[:30])
    return f"{shown}, …" if len(names) > 30 else shown or "none"
