"""Which local files were found whole before, so that many processes need not hash them all again.

A file is known by its path, size and time of change. The memory is a text file that processes only
ever append whole lines to; a line that is torn or of another version is not believed.
"""

import json
import os
from pathlib import Path

__all__ = ["VerifiedFiles"]

_FIELDS = ("path", "num_bytes", "mtime_ns", "sha256")


class VerifiedFiles:
    """Remembers the hashes of files."""

    def __init__(self, path: Path) -> None:
        """Read what is remembered.

        Args:
            path: the memory; made when something is added.
        """
        self._path = path
        self._known: set[tuple[object, ...]] = set()
        if path.exists():
            self._known.update(_entries(path.read_bytes()))

    def holds(self, file: Path, state: os.stat_result, sha256: str) -> bool:
        """Tell whether the file had this hash when it was in this state."""
        return _entry(file, state, sha256) in self._known

    def add(self, file: Path, state: os.stat_result, sha256: str) -> None:
        """Remember that the file has this hash in this state."""
        entry = _entry(file, state, sha256)
        self._known.add(entry)
        line = json.dumps(dict(zip(_FIELDS, entry, strict=True)))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # One write at the end of the file: lines of several processes do not mix. The newline in
        # front closes a line that a killed process left open.
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, f"\n{line}\n".encode())
        finally:
            os.close(handle)


def _entry(file: Path, state: os.stat_result, sha256: str) -> tuple[object, ...]:
    return str(file.absolute()), state.st_size, state.st_mtime_ns, sha256


def _entries(content: bytes) -> set[tuple[object, ...]]:
    found = set()
    for line in content.splitlines():
        try:
            raw = json.loads(line)
            found.add((*(raw[name] for name in _FIELDS),))
        except (ValueError, KeyError, TypeError):
            continue
    return found
