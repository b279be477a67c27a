"""A folder, local or in a store, as the readers of this package see it.

`LocalPlace` is here, `pipelines.sources.remote_place` has the other one. Both name files by paths
relative to their root, with forward slashes, and hide what is specific to a file system.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Protocol

from pipelines.records import QuarantineRecord
from pipelines.sources.names import printable
from pipelines.sources.patterns import Pattern, State
from pipelines.sources.video import VIDEO_SUFFIXES, UnusableFileError

__all__ = ["MAX_CAPTION_BYTES", "FoundFile", "LocalPlace", "Place"]

MAX_CAPTION_BYTES = 2**16
"""Of a caption file not more than this is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundFile:
    """A regular file that can be opened."""

    location: str
    num_bytes: int
    version: str


class Place(Protocol):
    """A root folder and what is needed of its file system."""

    refused: list[QuarantineRecord]
    """What a walk met and could not use."""

    def shown(self, path: str = "") -> str:
        """Return a path, or the root, for a message."""
        ...

    def bare(self, path: str) -> str:
        """Return a path without the query that an address on the web may end with."""
        ...

    def walk(self, pattern: Pattern | None = None) -> Iterator[str]:
        """Yield the paths of all files, or of those that match; hidden ones are left alone."""
        ...

    def find(self, path: str) -> FoundFile:
        """Look at a file.

        Raises:
            UnusableFileError: it is missing, no regular file, or not readable.
        """
        ...

    def open(self, path: str, *, block_bytes: int = ...) -> IO[bytes]:
        """Open a file for reading at any position; a store reads ahead by ``block_bytes``."""
        ...

    def find_many(self, paths: Iterable[str]) -> None:
        """Prepare `find` of many files, where asking for one at a time is slow."""
        ...

    def heads(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Read the first `MAX_CAPTION_BYTES` of small files; unreadable ones are left out."""
        ...


class LocalPlace:
    """A folder of this machine, or one that is mounted."""

    def __init__(self, root: str) -> None:
        self._root = os.path.abspath(root)
        self.refused: list[QuarantineRecord] = []

    def shown(self, path: str = "") -> str:
        """Return a path, or the root, for a message."""
        return printable(os.path.join(self._root, path) if path else self._root)

    def bare(self, path: str) -> str:
        """Return the path: a local one has no query."""
        return path

    def walk(self, pattern: Pattern | None = None) -> Iterator[str]:
        """Yield the paths of all files, or of those that match.

        Real folders come first, then links to folders. No folder is entered twice, so loops end:
        a link to a folder that is listed already, or that contains the link, is refused.
        """
        whole = pattern or Pattern("**")
        visited: dict[tuple[int, int], str] = {}
        pending = [("", whole.start(), False)]
        links: list[tuple[str, State, bool]] = []
        while pending or links:
            if not pending:
                links.sort(reverse=True)
                pending.append(links.pop())
            folder, state, is_link = pending.pop()
            try:
                self._enter(folder, visited, is_link=is_link)
                entries = self._entries(folder)
            except UnusableFileError as error:
                self.refused.append(error.record(printable(folder or ".")))
                continue
            inside: list[tuple[str, State, bool]] = []
            num_videos = 0
            for name, is_folder, is_link_to_folder in entries:
                path = f"{folder}/{name}" if folder else name
                after = whole.step(state, name)
                if is_folder or is_link_to_folder:
                    if after:
                        (links if is_link_to_folder else inside).append(
                            (path, after, is_link_to_folder)
                        )
                elif whole.is_match(after):
                    num_videos += is_video(name)
                    yield path
            pending += reversed(inside)
            if is_video(folder) and not num_videos and not inside:
                problem = UnusableFileError("IsADirectoryError", "a folder, not a video file")
                self.refused.append(problem.record(printable(folder)))

    def _enter(self, folder: str, visited: dict[tuple[int, int], str], *, is_link: bool) -> None:
        full = os.path.join(self._root, folder)
        try:
            status = os.stat(full)
        except OSError as error:
            raise _unusable(error) from error
        identity = (status.st_dev, status.st_ino)
        if is_link:
            target = os.path.realpath(full)
            holder = os.path.realpath(os.path.dirname(full))
            if holder == target or holder.startswith(target.rstrip("/") + "/"):
                raise UnusableFileError("LinkLoop", "a link to a folder that contains it: a loop")
        if identity in visited:
            other = printable(visited[identity] or ".")
            raise UnusableFileError(
                "Duplicate", f"the same folder as {other}, which is listed already"
            )
        visited[identity] = folder

    def _entries(self, folder: str) -> list[tuple[str, bool, bool]]:
        """Return (name, is a folder, is a link to a folder), sorted by name."""
        entries = []
        try:
            with os.scandir(os.path.join(self._root, folder)) as found:
                for entry in found:
                    if entry.name.startswith("."):
                        continue
                    is_folder = entry.is_dir(follow_symlinks=False)
                    is_link = not is_folder and entry.is_symlink() and _is_folder(entry)
                    entries.append((entry.name, is_folder, is_link))
        except OSError as error:
            raise _unusable(error) from error
        return sorted(entries)

    def find(self, path: str) -> FoundFile:
        """Look at a file; it is opened, as only that tells whether it can be read.

        Raises:
            UnusableFileError: it is missing, no regular file, or not readable.
        """
        full = os.path.join(self._root, path)
        try:
            status = os.stat(full)
            if stat.S_ISDIR(status.st_mode):
                raise UnusableFileError("IsADirectoryError", "a folder, not a file")
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                raise UnusableFileError("NotAFile", "not a regular file")
            os.close(os.open(full, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except ValueError as error:  # a zero byte in the path
            raise UnusableFileError(type(error).__name__, printable(str(error))) from error
        except OSError as error:
            raise _unusable(error) from error
        return FoundFile(
            location=full,
            num_bytes=status.st_size,
            version=f"{status.st_size}:{status.st_mtime_ns}",
        )

    def find_many(self, paths: Iterable[str]) -> None:
        """Do nothing: asking for one local file at a time is fast."""

    def open(self, path: str, *, block_bytes: int = 0) -> IO[bytes]:
        """Open a file for reading at any position; the system decides how far it reads ahead."""
        return open(os.path.join(self._root, path), "rb")

    def heads(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Read the first `MAX_CAPTION_BYTES` of small files; unreadable ones are left out."""
        found = {}
        for path in paths:
            try:
                self.find(path)
                with self.open(path) as file:
                    found[path] = file.read(MAX_CAPTION_BYTES)
            except (UnusableFileError, OSError):
                continue
        return found


def is_video(path: str) -> bool:
    """Tell whether a name has the suffix of a video."""
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _unusable(error: OSError) -> UnusableFileError:
    return UnusableFileError(type(error).__name__, str(error.strerror or error))
