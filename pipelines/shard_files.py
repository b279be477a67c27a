"""The bytes of shards: found or downloaded, checked, mapped into memory, and let go of again.

In: lines of the manifest. Out: mapped tar files, and where the members of each clip lie in them. A
bounded number of shards is mapped at a time, the least recently used is let go; where members lie
and a checksum of the key are kept for all, 68 bytes per clip. May be used by several threads.
"""

import hashlib
import mmap
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from cil.errors import ConfigError, DataError
from pipelines.read_config import ReadConfig
from pipelines.records import ShardEntry, ShardSidecar
from pipelines.shard_cache import GIB, ShardCache
from pipelines.shards import (
    CONDITION_SUFFIX,
    LATENTS_SUFFIX,
    RECORD_SUFFIX,
    THUMBNAIL_SUFFIX,
    read_sidecar,
    sidecar_name,
    tar_name,
)
from pipelines.storage import sha256_of_file
from pipelines.store import Store
from pipelines.verified_files import VerifiedFiles

__all__ = ["MEMBERS", "ShardFiles"]

MEMBERS = (LATENTS_SUFFIX, CONDITION_SUFFIX, RECORD_SUFFIX, THUMBNAIL_SUFFIX)
"""Members of a clip, in the order in which `ShardFiles.members` lists them."""

_REQUESTS = 16
_HEADER_BYTES = 512
_NAME_BYTES = 100
"""A tar file has a header right before each member, and the header begins with its name."""


@dataclass(frozen=True, slots=True)
class _OpenShard:
    content: mmap.mmap
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Index:
    places: npt.NDArray[np.int64]
    """(clips, len(MEMBERS), 2): offset and size in the tar file, in bytes."""
    keys: npt.NDArray[np.uint32]
    """(clips,) CRC-32 of the keys."""


class ShardFiles:
    """The shards of one data set, for one process."""

    def __init__(
        self,
        store: Store,
        *,
        folder: Path,
        settings: ReadConfig | None = None,
        num_sharers: int = 1,
    ) -> None:
        """Open nothing yet.

        Args:
            store: the data set.
            folder: for what is kept: downloaded shards, and which local ones were found whole.
            settings: limits.
            num_sharers: processes of this machine that share the folder's room; each has open at
                most its part of it, so that there is room for the next shard of any of them.
        """
        self._store = store
        self._settings = settings or ReadConfig()
        max_bytes = int(self._settings.cache_gib * GIB)
        self._cache = ShardCache(folder / "shards", max_bytes=max_bytes)
        self._max_open_bytes = max_bytes // num_sharers
        self._num_sharers = num_sharers
        remember = self._settings.verify == "remember"
        self._remembered = VerifiedFiles(folder / "verified.jsonl") if remember else None
        self._whole: dict[str, tuple[int, int]] = {}
        self._open: OrderedDict[str, _OpenShard] = OrderedDict()
        self._members: dict[str, _Index] = {}
        self._lock = threading.RLock()

    @property
    def num_open(self) -> int:
        """Shards that are mapped now."""
        return len(self._open)

    def content(self, entry: ShardEntry) -> mmap.mmap:
        """Return a shard's tar file as memory; its hash is that of the manifest.

        Raises:
            ConfigError: the cache is too small.
            DataError: the shard is missing, damaged, or cannot be reached.
        """
        with self._lock:
            shard = self._open.get(entry.name)
            if shard is None:
                shard = self._open[entry.name] = self._open_shard(entry)
            self._open.move_to_end(entry.name)
            return shard.content

    def members(self, entry: ShardEntry, clip: int) -> dict[str, tuple[int, int]]:
        """Return where the members of a clip lie; the tar file itself must say that they do.

        Args:
            entry: the shard.
            clip: number of the clip in it.

        Returns:
            For each of `MEMBERS` its offset and size in the tar file, in bytes.

        Raises:
            ConfigError: the cache is too small.
            DataError: the sidecar is missing, damaged, or of another tar file, or the shard is.
        """
        content, index = self.content(entry), self._index(entry)
        key = int(index.keys[clip])
        found: dict[str, tuple[int, int]] = {}
        for suffix, (offset, size) in zip(MEMBERS, index.places[clip].tolist(), strict=True):
            start = max(offset - _HEADER_BYTES, 0)
            name = content[start : start + _NAME_BYTES].partition(b"\0")[0]
            own, _, ending = name.partition(b".")
            if ending != suffix.encode() or zlib.crc32(own) != key:
                raise self._misplaced(entry, clip, offset, suffix)
            found[suffix] = offset, size
        return found

    def _index(self, entry: ShardEntry) -> _Index:
        with self._lock:
            if entry.name not in self._members:
                self._members[entry.name] = self._read_index(entry)
            return self._members[entry.name]

    def keys(self, entry: ShardEntry) -> list[str]:
        """Read the keys of a shard's clips; the tar file is not needed."""
        return self._sidecar(entry).keys

    def videos(self, entry: ShardEntry) -> list[str]:
        """Read the content hash of the video of each clip of a shard; no tar file is needed.

        Raises:
            DataError: the sidecar is missing or damaged.
        """
        sidecar = self._sidecar(entry)
        try:
            videos = [item["sha256"] for item in sidecar.inputs for _ in range(item["clips"])]
        except (KeyError, TypeError):
            videos = []
        if len(videos) != entry.count:
            raise DataError(
                f"{self._store.url(sidecar_name(entry.name))} is damaged: it does not say which "
                "video each clip is of; delete it and run encode again"
            )
        return videos

    def check(self, entries: Iterable[ShardEntry]) -> None:
        """Check shards before they are needed: local ones whole, remote ones by their size.

        Raises:
            ConfigError: the cache is too small for one of them.
            DataError: a shard is missing or damaged.
        """
        entries = list(entries)
        if all(self._store.own_file(tar_name(entry.name)) is not None for entry in entries):
            for entry in entries:
                self.content(entry)
                self._index(entry)
            return
        for entry in entries:
            self._check_room(entry)
        with ThreadPoolExecutor(_REQUESTS) as pool:
            sizes = pool.map(lambda entry: self._store.size(tar_name(entry.name)), entries)
            for entry, size in zip(entries, sizes, strict=True):
                if size is None:
                    raise self._missing(entry)
                if size != entry.num_bytes:
                    raise self._damaged(entry, f"it has {size} bytes", f"{entry.num_bytes}")

    def close(self) -> None:
        """Let go of all shards."""
        with self._lock:
            self._open.clear()

    def _open_shard(self, entry: ShardEntry) -> _OpenShard:
        path = self._store.own_file(tar_name(entry.name))
        self._let_go(entry, cached=path is None)
        if path is None:
            file = self._cache.open(
                entry,
                lambda target: self._download(entry, target),
                lambda present: self._is_whole(entry, present),
            )
            self._whole[entry.name] = _identity(file)
        else:
            file = self._open_checked(entry, path)
        with file:
            # The mapping has a copy of the open file, and by it keeps the lock of the cache for
            # as long as anybody looks at the memory. It is never closed under a tensor.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _OpenShard(content, entry.num_bytes)

    def _let_go(self, entry: ShardEntry, *, cached: bool) -> None:
        """Let go of shards until one more may be open.

        Memory that somebody still looks at stays mapped until he is done.
        """
        if cached:
            self._check_room(entry)
            used = sum(shard.num_bytes for shard in self._open.values())
            while self._open and used + entry.num_bytes > self._max_open_bytes:
                used -= self._drop_oldest()
        while len(self._open) >= self._settings.max_open_shards:
            self._drop_oldest()

    def _drop_oldest(self) -> int:
        _, shard = self._open.popitem(last=False)
        return shard.num_bytes

    def _check_room(self, entry: ShardEntry) -> None:
        if entry.num_bytes > self._max_open_bytes:
            raise ConfigError(
                f"read.cache_gib = {self._settings.cache_gib:g} is too small: "
                f"{self._num_sharers} workers share it, and the shard {entry.name} alone has "
                f"{entry.num_bytes / GIB:.3g} GiB; raise it to "
                f"{self._num_sharers * entry.num_bytes / GIB:.3g} or more"
            )

    def _download(self, entry: ShardEntry, target: Path) -> None:
        name = tar_name(entry.name)
        if not self._store.exists(name):
            raise self._missing(entry)
        self._store.download(name, target)
        self._check_hash(entry, target)

    def _is_whole(self, entry: ShardEntry, file: IO[bytes]) -> bool:
        """Hash a shard of the cache unless this process found the same file whole."""
        if self._remembered is not None or self._whole.get(entry.name) == _identity(file):
            return True
        return _sha256_of(file) == entry.sha256

    def _open_checked(self, entry: ShardEntry, path: Path) -> IO[bytes]:
        """Open a local shard; hash it unless this process found it whole in the same state."""
        if not path.is_file():
            raise self._missing(entry)
        file = path.open("rb")
        try:
            state = os.fstat(file.fileno())
            seen = (state.st_size, state.st_mtime_ns)
            if self._whole.get(entry.name) != seen:
                known = self._remembered
                if known is None or not known.holds(path, state, entry.sha256):
                    self._check_hash(entry, path)
                    if known is not None:
                        known.add(path, state, entry.sha256)
                self._whole[entry.name] = seen
        except BaseException:
            file.close()
            raise
        return file

    def _check_hash(self, entry: ShardEntry, path: Path) -> None:
        found = sha256_of_file(path)
        if found != entry.sha256:
            raise self._damaged(entry, f"its sha256 is {found}", entry.sha256)

    def _missing(self, entry: ShardEntry) -> DataError:
        place = self._store.url(tar_name(entry.name))
        return DataError(f"{place} is missing; run encode again to restore it")

    def _damaged(self, entry: ShardEntry, found: str, stated: str) -> DataError:
        return DataError(
            f"{self._store.url(tar_name(entry.name))} is damaged: {found}, the manifest states "
            f"{stated}; delete {self._store.url(sidecar_name(entry.name))} and run encode again"
        )

    def _misplaced(self, entry: ShardEntry, clip: int, offset: int, suffix: str) -> DataError:
        member = f"{self.keys(entry)[clip]}.{suffix}"
        return DataError(
            f"{self._store.url(sidecar_name(entry.name))} is damaged: it places {member} at byte "
            f"{offset} of {tar_name(entry.name)}, where the tar file has something else; delete it "
            "and run encode again"
        )

    def _sidecar(self, entry: ShardEntry) -> ShardSidecar:
        sidecar = read_sidecar(self._store, entry.name)
        place = self._store.url(sidecar_name(entry.name))
        if sidecar.sha256 != entry.sha256:
            raise DataError(
                f"{place} is of another tar file: it states the sha256 {sidecar.sha256}, the "
                f"manifest {entry.sha256}; run encode again"
            )
        if len(sidecar.keys) != entry.count:
            raise DataError(
                f"{place} is damaged: it lists {len(sidecar.keys)} clips, the manifest states "
                f"{entry.count}; delete it and run encode again"
            )
        return sidecar

    def _read_index(self, entry: ShardEntry) -> _Index:
        sidecar = self._sidecar(entry)
        try:
            members = [[sidecar.members[key][suffix] for suffix in MEMBERS] for key in sidecar.keys]
            places = np.array(members, dtype=np.int64).reshape(entry.count, len(MEMBERS), 2)
            inside = bool((places >= 0).all() and (places.sum(-1) <= entry.num_bytes).all())
        except (KeyError, TypeError, ValueError, OverflowError):
            inside = False
        if not inside:
            raise DataError(
                f"{self._store.url(sidecar_name(entry.name))} is damaged: it does not say where "
                "in the tar file the clips are; delete it and run encode again"
            )
        keys = np.array([zlib.crc32(key.encode()) for key in sidecar.keys], dtype=np.uint32)
        return _Index(places, keys)


def _identity(file: IO[bytes]) -> tuple[int, int]:
    """Tell files of the cache apart, whose time of change says when they were last used."""
    state = os.fstat(file.fileno())
    return state.st_size, state.st_ino


def _sha256_of(file: IO[bytes]) -> str:
    with open(file.fileno(), "rb", closefd=False) as same:
        digest = hashlib.file_digest(same, "sha256").hexdigest()
    file.seek(0)
    return digest
