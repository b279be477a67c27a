"""A bounded folder of downloaded shards that the processes of one machine share.

    CACHE/SHA256.tar                a shard, whole and checked
    CACHE/.SHA256.NUM_BYTES.tmp     a download that is under way, or was when its process died
    CACHE/.lock, CACHE/.lock-XX     locks: of the room in the folder, and of downloads by hash

A shard appears by a rename. Who has one open holds a shared lock on the file itself, so that nobody
deletes it; locks are the kernel's and end with their process, however it ends. The folder must be
on a file system with working locks, best a local disk.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cil.errors import ConfigError, DataError
from pipelines.records import ShardEntry

__all__ = ["GIB", "ShardCache"]

GIB = 2**30
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNDER_WAY = re.compile(r"\.([0-9a-f]{64})\.([0-9]+)\.tmp")


class ShardCache:
    """Shards by the hash of their content."""

    def __init__(self, folder: Path, *, max_bytes: int | None = None) -> None:
        """Use a folder; it is made when something is put in.

        Args:
            folder: the cache, of this class alone.
            max_bytes: what all shards in it, also those that are being downloaded, may take
                together; None sets no limit.
        """
        self._folder = folder
        self.max_bytes = max_bytes

    def open(
        self,
        entry: ShardEntry,
        download: Callable[[Path], None],
        is_whole: Callable[[IO[bytes]], bool] = lambda file: True,
    ) -> IO[bytes]:
        """Open a shard; it stays in the cache until the file is closed.

        Args:
            entry: the shard.
            download: puts the shard into a local file and checks its hash; called if the cache
                has not got it, by one process at a time.
            is_whole: tells whether a file of the right size that is in the cache is the shard; one
                that is not is deleted and downloaded again.

        Returns:
            The file.

        Raises:
            ConfigError: it does not fit in the cache beside the shards that are open.
            DataError: the manifest states no hash; and whatever ``download`` raises.
        """
        if not _SHA256.fullmatch(entry.sha256):  # it becomes the name of a file
            raise DataError(f"the manifest states no sha256 of {entry.name}, got {entry.sha256!r}")
        path = self._folder / f"{entry.sha256}.tar"
        file = self._open_present(path, entry, is_whole)
        if file is not None:
            return file
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(self._lock_of(entry.sha256)):
            file = self._open_present(path, entry, is_whole)  # another process was faster
            if file is None:
                path.unlink(missing_ok=True)  # somebody else's work: under this lock nobody's new
                file = self._fetch(path, entry, download)
            return file

    def _fetch(self, path: Path, entry: ShardEntry, download: Callable[[Path], None]) -> IO[bytes]:
        temporary = self._folder / f".{entry.sha256}.{entry.num_bytes}.tmp"
        with _locked(self._folder / ".lock"):
            for old in self._folder.glob(f".{entry.sha256[:2]}*.tmp"):
                old.unlink(missing_ok=True)  # under this lock: of a process that has died
            self._make_room(entry)
            temporary.touch()  # its name reserves the room
        try:
            download(temporary)
            file = temporary.open("rb")
            fcntl.flock(file, fcntl.LOCK_SH)  # before it can be seen, and so be deleted
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return file

    def _open_present(
        self, path: Path, entry: ShardEntry, is_whole: Callable[[IO[bytes]], bool]
    ) -> IO[bytes] | None:
        """Open a shard that is whole in the cache and mark it as used."""
        while True:
            try:
                file = path.open("rb")
            except FileNotFoundError:
                return None
            fcntl.flock(file, fcntl.LOCK_SH)
            state = os.fstat(file.fileno())
            if not state.st_nlink:  # deleted between the two lines above
                file.close()
                continue
            try:
                whole = state.st_size == entry.num_bytes and is_whole(file)
            except BaseException:
                file.close()
                raise
            if not whole:
                file.close()
                return None
            os.utime(file.fileno())
            return file

    def _make_room(self, entry: ShardEntry) -> None:
        """Delete the least recently used shards until one more fits; the folder is locked."""
        if self.max_bytes is None:
            return
        if entry.num_bytes > self.max_bytes:
            raise ConfigError(
                f"read.cache_gib = {self.max_bytes / GIB:g} is too small for the shard "
                f"{entry.name} of {entry.num_bytes / GIB:.3g} GiB; raise read.cache_gib"
            )
        shards = []
        for path in self._folder.glob("*.tar"):
            with suppress(FileNotFoundError):
                state = path.stat()
                shards.append((state.st_mtime_ns, state.st_size, path))
        used = sum(size for _, size, _ in shards) + self._bytes_under_way()
        for _, size, path in sorted(shards):
            if used + entry.num_bytes <= self.max_bytes:
                return
            used -= size if _delete_unless_open(path) else 0
        if used + entry.num_bytes > self.max_bytes:
            raise ConfigError(
                f"the cache {self._folder} has {used / GIB:.3g} GiB of shards that are open, so "
                f"{entry.name} of {entry.num_bytes / GIB:.3g} GiB does not fit into "
                f"read.cache_gib = {self.max_bytes / GIB:g}; raise it, or give each command a "
                "read.cache of its own"
            )

    def _bytes_under_way(self) -> int:
        """Return the room of downloads, after deleting those whose process has died."""
        total = 0
        for path in self._folder.glob(".*.tmp"):
            match = _UNDER_WAY.fullmatch(path.name)
            if match is None:
                continue
            with self._lock_of(match[1]).open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    total += int(match[2])
                else:
                    path.unlink(missing_ok=True)
        return total

    def _lock_of(self, sha256: str) -> Path:
        """Name the lock of a download; 256 of them, so that the folder does not fill with them."""
        return self._folder / f".lock-{sha256[:2]}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _delete_unless_open(path: Path) -> bool:
    """Delete a file unless somebody holds its lock; tell whether its room is free."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True
