"""A folder in a store, listed and read through fsspec."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, cast

from cil.errors import ConfigError
from pipelines.records import QuarantineRecord
from pipelines.remote import explain, object_version, open_url, remote_errors, scheme_of, shown_url
from pipelines.sources.names import printable
from pipelines.sources.patterns import Pattern
from pipelines.sources.place import MAX_CAPTION_BYTES, FoundFile
from pipelines.sources.video import UnusableFileError

__all__ = ["RemotePlace"]

_BLOCK_BYTES = 2**22
_NUM_THREADS = 16


class RemotePlace:
    """A folder of a store.

    Raises:
        ConfigError: the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._url = url if url.endswith("/") else f"{url}/"
        self._files, path = open_url(url, "data.videos")
        self._root = path.rstrip("/")
        self._known: dict[str, dict[str, Any] | UnusableFileError] = {}
        self._is_listed = False
        self.refused: list[QuarantineRecord] = []

    @property
    def has_folders(self) -> bool:
        """Whether the store can list what is in a folder; web servers cannot."""
        return scheme_of(self._url) not in ("http", "https")

    def shown(self, path: str = "") -> str:
        """Return a path, or the root, for a message."""
        return printable(shown_url(self._url + path if path else self._url.rstrip("/")))

    def bare(self, path: str) -> str:
        """Return a path without the query that an address on the web may end with."""
        return path if self.has_folders else path.partition("?")[0]

    def walk(self, pattern: Pattern | None = None) -> Iterator[str]:
        """Yield the paths of all objects, or of those that match; hidden ones are left alone.

        Raises:
            ConfigError: the store cannot be listed.
        """
        if not self.has_folders:
            raise ConfigError(
                f"data.videos: {self.shown()} is on a web server, which cannot list folders; "
                "name single files, or give a table of them"
            )
        with remote_errors(ConfigError, f"data.videos: cannot list {self.shown()}"):
            found = self._files.find(self._root, detail=True)
        files = {
            full.removeprefix(f"{self._root}/"): info
            for full, info in found.items()
            if info.get("type") == "file" and not full.endswith("/")
        }
        self._known.update(files)
        self._is_listed = True
        for path in sorted(files):
            hidden = any(part.startswith(".") for part in path.split("/"))
            if not hidden and (pattern is None or pattern.matches(path)):
                yield path

    def find(self, path: str) -> FoundFile:
        """Look at an object.

        Raises:
            UnusableFileError: it is missing or cannot be read.
        """
        if path not in self._known:
            self._known[path] = self._ask(path)
        info = self._known[path]
        if isinstance(info, UnusableFileError):
            raise info
        return FoundFile(
            location=self._url + path, num_bytes=info["size"], version=object_version(info)
        )

    def _ask(self, path: str) -> dict[str, Any] | UnusableFileError:
        if self._is_listed:
            return UnusableFileError("FileNotFoundError", explain(FileNotFoundError()))
        try:
            info = cast("dict[str, Any]", self._files.info(self._full(path)))
        except Exception as error:  # whatever the library of that store raises
            return UnusableFileError(type(error).__name__, explain(error))
        if info.get("type") != "file":
            return UnusableFileError("IsADirectoryError", "a folder, not a file")
        if info.get("size") is None:
            return UnusableFileError("UnknownSize", "the server does not state its size")
        return info

    def find_many(self, paths: Iterable[str]) -> None:
        """Ask for many objects at the same time; `find` then answers without asking again."""

        def look(path: str) -> None:
            try:
                self.find(path)
            except UnusableFileError:
                return

        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            list(pool.map(look, paths))

    def is_folder(self) -> bool:
        """Tell whether there is any object below the root.

        Raises:
            ConfigError: the store cannot be asked.
        """
        if not self.has_folders:
            return False
        with remote_errors(ConfigError, f"data.videos: cannot use {self.shown()}"):
            try:
                return bool(self._files.info(self._root).get("type") == "directory")
            except FileNotFoundError:
                return False

    def open(self, path: str, *, block_bytes: int = _BLOCK_BYTES) -> IO[bytes]:
        """Open an object for reading at any position."""
        size = self.find(path).num_bytes
        opened = self._files.open(
            self._full(path), "rb", block_size=block_bytes, cache_type="readahead", size=size
        )
        return cast("IO[bytes]", opened)

    def heads(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Read the first `MAX_CAPTION_BYTES` of small objects; unreadable ones are left out."""

        def read(path: str) -> bytes | None:
            try:
                end = min(self.find(path).num_bytes, MAX_CAPTION_BYTES)
                content = self._files.cat_file(self._full(path), start=0, end=end) if end else b""
                return cast("bytes", content)
            except Exception:  # a caption is not worth losing the video
                return None

        wanted = list(paths)
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            found = zip(wanted, pool.map(read, wanted), strict=True)
            return {path: content for path, content in found if content is not None}

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if self._root else path
