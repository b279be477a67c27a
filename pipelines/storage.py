"""Writing files so that a reader sees all of a file or none of it.

Every result of a stage goes through `write_atomic` or `temporary_beside` + `commit`: a temporary
file in the same folder, flushed to disk, then renamed. A killed process leaves at most a temporary
file, which `remove_temporaries` clears at the next start.
"""

import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cil.errors import ConfigError, DataError, StageError

__all__ = [
    "check_writable",
    "commit",
    "hash_of_folder",
    "lock_folder",
    "read_json",
    "remove_temporaries",
    "replace_folder",
    "set_aside",
    "sha256_of_file",
    "temporary_beside",
    "write_atomic",
    "write_json",
]

_SUFFIX = ".tmp"


def temporary_beside(path: Path) -> Path:
    """Name a temporary file or folder next to ``path``, unique to this process."""
    return path.parent / f".{path.name}.{os.getpid()}{_SUFFIX}"


def commit(temporary: Path, path: Path) -> None:
    """Move a finished temporary file to its final name and make the rename durable."""
    os.replace(temporary, path)
    _sync_folder(path.parent)


def replace_folder(temporary: Path, path: Path) -> None:
    """Move a finished temporary folder to its final name, replacing what was there."""
    if path.exists():
        old = path.parent / f".{path.name}.old.{os.getpid()}{_SUFFIX}"
        os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old)
    else:
        os.replace(temporary, path)
    _sync_folder(path.parent)


def set_aside(places: Sequence[Path], label: str) -> list[Path]:
    """Rename files and folders out of the way; nothing that was set aside before is touched.

    Args:
        places: of one folder; one that does not exist is left out.
        label: stands behind the name; where it is taken, all get the first free number too.

    Returns:
        What they are called now, in their order.
    """
    found = [place for place in places if place.exists()]
    for number in itertools.count(1):
        ending = f"-{label}" if number == 1 else f"-{label}-{number}"
        aside = [place.with_name(f"{place.stem}{ending}{place.suffix}") for place in found]
        if not any(place.exists() for place in aside):
            break
    for place, target in zip(found, aside, strict=True):
        place.replace(target)
    return aside


def write_atomic(path: Path, content: bytes) -> None:
    """Write a whole file under its final name, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        commit(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write plain data as indented JSON with sorted keys, atomically."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: it holds something else.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged, it is not JSON: {error}; delete it") from error


def remove_temporaries(folder: Path) -> None:
    """Delete what killed processes left half-written in ``folder`` (not in its sub-folders)."""
    if not folder.is_dir():
        return
    for path in folder.glob(f".*{_SUFFIX}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path, name: str) -> Iterator[None]:
    """Hold a folder for one command; the lock ends with the process, however it ends.

    Args:
        folder: made if missing.
        name: the setting it comes from, for the message.

    Raises:
        StageError: another command holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StageError(
                f"{name}: another command is working in {folder}; wait for it, or choose another "
                "folder"
            ) from error
        yield


def sha256_of_file(path: Path) -> str:
    """Hash a file's content; returns hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of_folder(folder: Path) -> str:
    """Hash the names and contents of all files below a folder; a missing one hashes as empty."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(folder).as_posix()}\0{sha256_of_file(path)}\n".encode())
    return total.hexdigest()


def check_writable(folder: Path, name: str) -> None:
    """Check that files can be created in ``folder``, without leaving anything behind.

    Args:
        folder: a folder that exists, or could be made.
        name: the setting it comes from, for the message.

    Raises:
        ConfigError: it is a file, or it cannot be made or written.
    """
    existing = folder
    try:
        # A link to nowhere does not "exist", but nothing can be made in its place either.
        while not (existing.is_symlink() or existing.exists()) and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir():
            raise NotADirectoryError(f"{existing} is not a folder")
        probe = existing / f".writable.{os.getpid()}{_SUFFIX}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"{name}: cannot write to {folder}: {reason}; choose a folder that you may write to"
        ) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
