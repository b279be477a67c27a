"""Which files the rows of a table name.

Paths in a table come from elsewhere: they are relative to a root and must stay below it, by their
text alone, also if they are absolute. Web and store addresses are taken as they are.
"""

import os
import posixpath
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import IO

from cil.errors import ConfigError
from pipelines.records import QuarantineRecord
from pipelines.remote import OBJECT_STORES, is_url, remote_errors, scheme_of
from pipelines.sources.names import name_of_url, printable
from pipelines.sources.place import LocalPlace, Place
from pipelines.sources.remote_place import RemotePlace
from pipelines.sources.tables import Row, read_rows
from pipelines.sources.video import SourceOptions, SourceVideo, UnusableFileError

__all__ = ["check_table", "place_of", "read_table"]

_WEB_SCHEMES = OBJECT_STORES | {"http", "https", "hf"}
_NUM_ROWS_AT_ONCE = 1000


def place_of(folder: str) -> Place:
    """Return the place for a local folder or a URL."""
    if is_url(folder):
        return RemotePlace(folder)
    return LocalPlace(folder.partition("://")[2] if scheme_of(folder) else folder)


class _Places:
    """The root of a table, and the stores that its rows name."""

    def __init__(self, root: str) -> None:
        self.root = place_of(root)
        self._is_remote = is_url(root)
        prefix = root if self._is_remote else os.path.abspath(root)
        self._prefix = prefix.rstrip("/") + "/"
        self._others: dict[str, Place] = {}

    def resolve(self, written: str) -> tuple[Place, str, str]:
        """Return (place, path in it, name) of what a row names.

        Raises:
            UnusableFileError: it is not allowed.
        """
        if "\0" in written:
            raise UnusableFileError("UnsafePath", "the path holds a zero byte")
        inside = written.removeprefix(self._prefix)
        if is_url(inside):
            return self._foreign(inside)
        if scheme_of(inside):
            raise UnusableFileError("UnsafePath", "a file:// address; write the path itself")
        shown = printable(self._prefix)
        if inside.startswith("/"):
            raise UnusableFileError(
                "UnsafePath",
                f"an absolute path outside {shown}; if that is meant, set data.video_root to a "
                "folder that contains it ('/' allows all)",
            )
        path = posixpath.normpath(inside)
        if path == ".." or path.startswith("../"):
            raise UnusableFileError("UnsafePath", f"a path that leaves {shown}")
        return self.root, path, printable(path)

    def _foreign(self, url: str) -> tuple[Place, str, str]:
        scheme = scheme_of(url)
        if scheme not in _WEB_SCHEMES:
            raise UnusableFileError("UnsafePath", f"addresses with {scheme}:// are not read")
        folder, _, base = url.partition("?")[0].rpartition("/")
        base += url[len(folder) + 1 + len(base) :]
        if folder not in self._others:
            try:
                self._others[folder] = RemotePlace(folder)
            except ConfigError as error:
                raise UnusableFileError("ConfigError", str(error)) from error
        return self._others[folder], base, name_of_url(url)


def check_table(place: Place, path: str, suffix: str, options: SourceOptions) -> None:
    """Check that a table can be read and has the columns.

    Raises:
        ConfigError: it does not, or it has no rows.
    """
    shown = place.shown(path)
    with _open(place, path) as file, closing(_rows(file, shown, suffix, options)) as rows:
        problem = ""
        for row in rows:
            if row.problem is None:
                return
            problem = problem or f" that can be read; line {row.line}: {row.problem.message}"
    raise ConfigError(f"data.videos: {shown} has no rows{problem}")


def read_table(
    place: Place, path: str, suffix: str, options: SourceOptions, *, folder: str
) -> tuple[list[SourceVideo], list[QuarantineRecord]]:
    """List the videos that a table names.

    Args:
        place: where the table is.
        path: its path there.
        suffix: its suffix in lower case, which tells the format.
        options: root and columns.
        folder: the folder of the table, which is the root if none is set.

    Returns:
        The videos, and a record for each row that is malformed, unsafe, missing or named twice.

    Raises:
        ConfigError: the table cannot be read.
    """
    places = _Places(options.video_root or folder)
    videos: list[SourceVideo] = []
    refused: list[QuarantineRecord] = []
    lines: dict[str, int] = {}
    table = printable(posixpath.basename(path))
    shown = place.shown(path)
    with _open(place, path) as file, closing(_rows(file, shown, suffix, options)) as rows:
        while part := list(islice(rows, _NUM_ROWS_AT_ONCE)):
            for row, found in _resolve(part, places):
                written = name_of_url(row.path) if is_url(row.path) else printable(row.path)
                name = written or f"{table}:{row.line}"
                try:
                    if isinstance(found, UnusableFileError):
                        raise found
                    where, inside, name = found
                    file_found = where.find(inside)
                    if file_found.location in lines:
                        message = f"line {lines[file_found.location]} names the same file"
                        raise UnusableFileError("Duplicate", message, stage="duplicate")
                except UnusableFileError as error:
                    message = f"line {row.line} of {table}: {error.message}"
                    reason = UnusableFileError(error.exception, message, stage=error.stage)
                    refused.append(reason.record(name))
                    continue
                lines[file_found.location] = row.line
                videos.append(
                    SourceVideo(
                        name=name,
                        location=file_found.location,
                        offset=None,
                        num_bytes=file_found.num_bytes,
                        version=file_found.version,
                        caption=row.caption,
                    )
                )
    return videos, refused


def _open(place: Place, path: str) -> IO[bytes]:
    try:
        place.find(path)
        with remote_errors(ConfigError, f"data.videos: cannot open {place.shown(path)}"):
            return place.open(path)
    except UnusableFileError as error:
        raise ConfigError(f"data.videos: {place.shown(path)}: {error.message}") from error


def _rows(
    file: IO[bytes], table: str, suffix: str, options: SourceOptions
) -> Generator[Row, None, None]:
    with remote_errors(ConfigError, f"data.videos: cannot read {table}"):
        yield from read_rows(file, suffix, options, table)


def _resolve(
    rows: list[Row], places: _Places
) -> Iterator[tuple[Row, tuple[Place, str, str] | UnusableFileError]]:
    """Resolve rows, and ask each store for all its files together."""
    resolved: list[tuple[Row, tuple[Place, str, str] | UnusableFileError]] = []
    wanted: dict[int, tuple[Place, list[str]]] = {}
    for row in rows:
        if row.problem is not None:
            resolved.append((row, row.problem))
            continue
        try:
            place, path, name = places.resolve(row.path)
        except UnusableFileError as error:
            resolved.append((row, error))
            continue
        wanted.setdefault(id(place), (place, []))[1].append(path)
        resolved.append((row, (place, path, name)))
    for place, paths in wanted.values():
        place.find_many(paths)
    return iter(resolved)
