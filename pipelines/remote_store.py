"""A data set in an object store, through fsspec; see `pipelines.store` for what it promises."""

import atexit
import hashlib
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cil.errors import ConfigError, DataError
from pipelines.remote import object_version, open_url, remote_errors, shown_url
from pipelines.store_names import checked_name, is_temporary

__all__ = ["RemoteStore"]

_PROBE = ".writable.{}.tmp"


@dataclass(frozen=True)
class RemoteStore:
    """A prefix in a store that fsspec knows."""

    location: str

    def _files(self) -> tuple[Any, str]:
        """Return the file system, which fsspec keeps per process, and the path of the prefix."""
        return open_url(self.location, "the location of the data set")

    def _at(self, name: str) -> tuple[Any, str]:
        files, root = self._files()
        return files, f"{root.rstrip('/')}/{checked_name(name)}"

    def url(self, name: str = "") -> str:
        """Return the URL, for people."""
        return shown_url(f"{self.location}/{checked_name(name)}" if name else self.location)

    def _info(self, name: str) -> dict[str, Any] | None:
        files, path = self._at(name)
        with remote_errors(DataError, f"cannot look for {self.url(name)}"):
            try:
                info = files.info(path)
            except FileNotFoundError:
                return None
        return cast("dict[str, Any]", info) if info.get("type") == "file" else None

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        files, path = self._at(name)
        with remote_errors(DataError, f"cannot read {self.url(name)}"):
            return cast("bytes", files.cat_file(path))

    def exists(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        return self._info(name) is not None

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes; None if there is none."""
        info = self._info(name)
        return None if info is None else int(info["size"])

    def write(self, name: str, content: bytes) -> None:
        """Write a file by one request, so that it is whole or not there."""
        files, path = self._at(name)
        with remote_errors(DataError, f"cannot write {self.url(name)}"):
            files.pipe_file(path, content)

    def put(self, local: Path, name: str) -> None:
        """Upload a finished local file and delete it; the object appears when it is whole."""
        self._upload(local, name)
        local.unlink()

    def _upload(self, local: Path, name: str) -> None:
        files, path = self._at(name)
        with remote_errors(DataError, f"cannot write {self.url(name)}"):
            files.put_file(str(local), path)
        found, expected = self.size(name), local.stat().st_size
        if found != expected:
            raise DataError(
                f"{self.url(name)} has {found} bytes after the upload, {expected} were sent; "
                "run the stage again"
            )

    def put_folder(self, local: Path, name: str) -> None:
        """Upload a finished local folder, then delete what else was under its name."""
        sources = sorted(path for path in local.rglob("*") if path.is_file())
        names = [f"{name}/{path.relative_to(local).as_posix()}" for path in sources]
        for path, target in zip(sources, names, strict=True):
            self._upload(path, target)
        for old in set(self.list(name)).difference(names):
            self.remove(old)
        shutil.rmtree(local)

    def list(self, prefix: str = "") -> list[str]:
        """Return the names of all files in a folder and below, sorted."""
        files, root = self._files()
        folder = self._at(prefix)[1] if prefix else root
        start = f"{root.rstrip('/')}/"
        with remote_errors(DataError, f"cannot list {self.url(prefix)}"):
            try:
                found = files.find(folder, detail=True)
            except FileNotFoundError:
                found = {}
        names = (path.removeprefix(start) for path in found if not path.endswith("/"))
        return sorted(name for name in names if not is_temporary(name))

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        files, path = self._at(name)
        with remote_errors(DataError, f"cannot delete {self.url(name)}"):
            try:
                files.rm_file(path)
            except FileNotFoundError:
                return

    def own_file(self, name: str) -> Path | None:
        """Return None: files must be downloaded."""
        checked_name(name)
        return None

    def download(self, name: str, target: Path) -> None:
        """Copy a file to a local path, which grows until it has the stated size."""
        self._download(name, target, size=int(self._present(name)["size"]))

    def local(self, name: str, cache: Path) -> Path:
        """Return a copy of the file, downloaded if the cache has not got this version of it."""
        info = self._present(name)
        size, version = int(info["size"]), object_version(info)
        state = f"{self.location}/{name}\0{size}\0{version}"
        path = cache / hashlib.sha256(state.encode()).hexdigest()[:32] / name.rpartition("/")[2]
        if not (path.is_file() and path.stat().st_size == size):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
            os.close(handle)
            try:
                self._download(name, Path(temporary), size=size)
                os.replace(temporary, path)
            finally:
                Path(temporary).unlink(missing_ok=True)
        return path

    def _present(self, name: str) -> dict[str, Any]:
        info = self._info(name)
        if info is None:
            raise DataError(f"{self.url(name)} does not exist; run the stage that writes it")
        return info

    def _download(self, name: str, path: Path, *, size: int) -> None:
        files, remote = self._at(name)
        with remote_errors(DataError, f"cannot read {self.url(name)}"):
            files.get_file(remote, str(path))
        found = path.stat().st_size
        if found != size:
            raise DataError(
                f"{self.url(name)} gave {found} bytes, {size} were stated; it changed while "
                "it was read, or the connection broke: run the stage again"
            )

    def local_folder(self, name: str, cache: Path) -> Path:
        """Return a copy of a folder of few files, downloaded where the cache has not got it."""
        names = self.list(name)
        if not names:
            raise DataError(f"{self.url(name)} does not exist; run the stage that writes it")
        parts = {part: self.local(part, cache) for part in names}
        state = "\0".join(str(path) for path in parts.values())
        folder = cache / hashlib.sha256(state.encode()).hexdigest()[:32]
        if not folder.is_dir():
            temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=cache))
            for part, path in parts.items():
                target = temporary / part.removeprefix(f"{name}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            with suppress(OSError):  # another process was faster
                os.rename(temporary, folder)
            shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def remove_temporaries(self) -> None:
        """Do nothing: an object appears when it is whole."""

    def scratch(self) -> Path:
        """Return a temporary folder of this process, which ends with it."""
        return _process_scratch()

    def check_writable(self, setting: str) -> None:
        """Check that objects can be written, by writing one and deleting it."""
        name = _PROBE.format(f"{os.uname().nodename}.{os.getpid()}")
        files, path = self._at(name)
        with remote_errors(ConfigError, f"{setting}: cannot write to {self.url()}"):
            files.pipe_file(path, b"")
            files.rm_file(path)


_SCRATCH: dict[int, Path] = {}


def _process_scratch() -> Path:
    """Return the temporary folder of this process; a forked one makes its own."""
    pid = os.getpid()
    path = _SCRATCH.get(pid)
    if path is None or not path.is_dir():
        path = _SCRATCH[pid] = Path(tempfile.mkdtemp(prefix="cil-store-"))
        atexit.register(_remove_scratch, pid, path)
    return path


def _remove_scratch(pid: int, path: Path) -> None:
    if pid == os.getpid():
        shutil.rmtree(path, ignore_errors=True)
