"""Where a data set is written: a local folder, or a prefix in an object store.

In: finished files and their names. Out: the same under the store, each whole or not at all.
A writer makes a file in `Store.scratch`, then `put`s it, and what says that it is complete last.
A reader that needs a file, for example to map it into memory, asks for `Store.local`.

Names are relative, with forward slashes. A store is made from its location alone, so that
a worker can make it again; it can also be pickled.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cil.errors import ConfigError, DataError
from pipelines import storage
from pipelines.remote import is_url, open_url, scheme_of, shown_url
from pipelines.remote_store import RemoteStore
from pipelines.store_names import checked_name, is_temporary

__all__ = [
    "LocalStore",
    "Location",
    "RemoteStore",
    "Store",
    "open_store",
    "read_json",
    "write_json",
]


class Store(Protocol):
    """A place for the files of a data set.

    Every method that takes a name raises `DataError` if the store cannot do what is asked: a file
    is missing, access is denied, the server cannot be reached. How often a request is repeated is
    decided by the library of the store.
    """

    @property
    def location(self) -> str:
        """What `open_store` takes to make this store again."""
        ...

    def url(self, name: str = "") -> str:
        """Return where a file is, for people; it holds no secret."""
        ...

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        ...

    def exists(self, name: str) -> bool:
        """Tell whether there is a file of this name; a folder is none."""
        ...

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes; None if there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        ...

    def put(self, local: Path, name: str) -> None:
        """Move a finished local file to its name, whole or not at all."""
        ...

    def put_folder(self, local: Path, name: str) -> None:
        """Move a finished local folder to its name, replacing what was there.

        Only a local store does it at one moment. In an object store a reader may meet some of the
        files, so what names the folder must be written later.
        """
        ...

    def list(self, prefix: str = "") -> list[str]:
        """Return the names of all files in a folder and below, sorted; temporary ones are none."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        ...

    def own_file(self, name: str) -> Path | None:
        """Return where a file is if it is on this machine, whether it exists or not; else None."""
        ...

    def download(self, name: str, target: Path) -> None:
        """Copy a file to a local path, which grows until it has the stated size."""
        ...

    def local(self, name: str, cache: Path) -> Path:
        """Return a local file with the content.

        Args:
            name: the file.
            cache: folder for copies of remote files. A copy is whole or not there, and used again
                while the store states the same version and size; older ones stay until the folder
                is deleted.
        """
        ...

    def local_folder(self, name: str, cache: Path) -> Path:
        """Return a local folder with the content of all files below ``name``; see `local`."""
        ...

    def remove_temporaries(self) -> None:
        """Delete what killed processes left half-written; nobody else may be writing."""
        ...

    def scratch(self) -> Path:
        """Return an existing local folder for files that will be `put`."""
        ...

    def check_writable(self, setting: str) -> None:
        """Check that files can be written, without leaving anything behind.

        Args:
            setting: where the location comes from, for the message.

        Raises:
            ConfigError: the place is missing, cannot be reached, or may not be written.
        """
        ...


Location = Store | Path | str
"""What `open_store` takes."""


def open_store(location: Location, *, setting: str = "output.dir") -> Store:
    """Open a store; nothing is read or written yet, see `Store.check_writable`.

    Args:
        location: a local folder, which need not exist, or a URL such as s3://bucket/prefix; a
            store is returned as it is.
        setting: where the location comes from, for the message.

    Raises:
        ConfigError: the location cannot be right.
    """
    if not isinstance(location, str | Path):
        return location
    location = str(location)
    if not location:
        raise ConfigError(f"{setting} is not set; give a folder or a URL such as s3://bucket/run")
    if is_url(location):
        if scheme_of(location) in ("http", "https"):
            raise ConfigError(
                f"{setting}: {shown_url(location)} is on a web server, which cannot be written; "
                "give a folder or a URL such as s3://bucket/run"
            )
        open_url(location, setting)
        return RemoteStore(location.rstrip("/"))
    folder = location.partition("://")[2] if scheme_of(location) else location
    return LocalStore(os.path.abspath(folder))  # a worker may be in another folder


def read_json(store: Store, name: str) -> Any:
    """Read a JSON file.

    Raises:
        DataError: it is missing, or holds something else.
    """
    try:
        return json.loads(store.read(name))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{store.url(name)} is damaged, it is not JSON: {error}; delete it"
        ) from error


def write_json(store: Store, name: str, value: Any) -> None:
    """Write plain data as indented JSON with sorted keys, whole or not at all."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    store.write(name, (text + "\n").encode())


@contextmanager
def _data_errors(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{what}: it does not exist; run the stage that writes it") from error
    except OSError as error:
        raise DataError(
            f"{what}: {error.strerror or error}; check the space on the disk and the permissions"
        ) from error


@dataclass(frozen=True)
class LocalStore:
    """A folder of this machine, or one that all machines mount."""

    location: str

    def _path(self, name: str) -> Path:
        return Path(self.location) / checked_name(name)

    def url(self, name: str = "") -> str:
        """Return the path, for people."""
        return str(self._path(name) if name else Path(self.location))

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        with _data_errors(f"cannot read {self.url(name)}"):
            return self._path(name).read_bytes()

    def exists(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        return self._path(name).is_file()

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes; None if there is none."""
        path = self._path(name)
        return path.stat().st_size if path.is_file() else None

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        with _data_errors(f"cannot write {self.url(name)}"):
            storage.write_atomic(self._path(name), content)

    def put(self, local: Path, name: str) -> None:
        """Move a finished local file to its name; a rename if it is on the same file system."""
        path = self._path(name)
        with _data_errors(f"cannot write {self.url(name)}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with local.open("rb") as file:
                os.fsync(file.fileno())
            try:
                storage.commit(local, path)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._copy(local, path)

    def _copy(self, local: Path, path: Path) -> None:
        temporary = storage.temporary_beside(path)
        try:
            shutil.copyfile(local, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            storage.commit(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        local.unlink()

    def put_folder(self, local: Path, name: str) -> None:
        """Move a finished local folder to its name, replacing what was there."""
        path = self._path(name)
        with _data_errors(f"cannot write {self.url(name)}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if local.stat().st_dev == path.parent.stat().st_dev:
                storage.replace_folder(local, path)
                return
            temporary = storage.temporary_beside(path)
            try:
                shutil.copytree(local, temporary)
                storage.replace_folder(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(local)

    def list(self, prefix: str = "") -> list[str]:
        """Return the names of all files in a folder and below, sorted."""
        root = Path(self.location)
        folder = self._path(prefix) if prefix else root
        paths = (path for path in folder.rglob("*") if path.is_file())
        names = (path.relative_to(root).as_posix() for path in paths)
        return sorted(name for name in names if not is_temporary(name))

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        path = self._path(name)
        with _data_errors(f"cannot delete {self.url(name)}"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # a folder that is empty now is not needed; the root stays
            if path.parent != Path(self.location):
                path.parent.rmdir()

    def own_file(self, name: str) -> Path | None:
        """Return where the file is."""
        return self._path(name)

    def download(self, name: str, target: Path) -> None:
        """Copy a file."""
        with _data_errors(f"cannot read {self.url(name)}"):
            shutil.copyfile(self._path(name), target)

    def local(self, name: str, cache: Path) -> Path:
        """Return the file itself."""
        path = self._path(name)
        if not path.is_file():
            raise DataError(f"{path} does not exist; run the stage that writes it")
        return path

    def local_folder(self, name: str, cache: Path) -> Path:
        """Return the folder itself."""
        path = self._path(name)
        if not path.is_dir():
            raise DataError(f"{path} does not exist; run the stage that writes it")
        return path

    def remove_temporaries(self) -> None:
        """Delete what killed processes left half-written."""
        root = Path(self.location)
        for folder in (root, *(path for path in root.glob("*") if path.is_dir())):
            storage.remove_temporaries(folder)

    def scratch(self) -> Path:
        """Return the folder itself, so that `put` is a rename."""
        path = Path(self.location)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def check_writable(self, setting: str) -> None:
        """Check that files can be written, without leaving anything behind."""
        storage.check_writable(Path(self.location), setting)
