"""Videos inside WebDataset tar files.

In: a tar file without compression. Out: where the bytes of each video lie in it, so that nothing
is unpacked and a member's name never becomes a path. Tars come from strangers: sizes that are
negative or beyond the end, endless headers and cut files are refused.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, cast

from pipelines.records import QuarantineRecord
from pipelines.remote import explain
from pipelines.sources.captions import CAPTION_SUFFIXES, best_caption, caption_in
from pipelines.sources.names import printable
from pipelines.sources.place import MAX_CAPTION_BYTES, FoundFile, Place, is_video
from pipelines.sources.video import SourceVideo, UnusableFileError

__all__ = ["TAR_SUFFIX", "TarContents", "check_tar", "read_tar"]

TAR_SUFFIX = ".tar"

_BLOCK_BYTES = 2**16
_MAX_HEADER_BYTES = 2**16
_END = bytes(512)
_AFTER_END = 1 << 16
"""Bytes after the end that are looked at; the padding of a tar is shorter."""


@dataclass(kw_only=True, slots=True)
class TarContents:
    """What a tar holds."""

    videos: list[SourceVideo] = field(default_factory=list)
    refused: list[QuarantineRecord] = field(default_factory=list)
    num_other_files: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Member:
    name: str
    kind: str
    """file, folder, or what else it is."""
    offset: int
    num_bytes: int
    head: bytes
    """The first bytes of a caption, else nothing."""


class _Headers(io.RawIOBase):
    """A tar file for `tarfile`, which must not be made to read more than a header."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        try:
            return self._file.read(size)
        except ValueError as error:  # a web server that gives whole files only
            raise OSError(str(error)) from error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def check_tar(place: Place, path: str) -> None:
    """Check that a file begins as a tar.

    Raises:
        UnusableFileError: it is missing, or something else.
    """
    found = place.find(path)
    next(_members(place, path, found), None)


def read_tar(place: Place, path: str, *, name: str) -> TarContents:
    """List the videos in a tar, with their captions.

    Args:
        place: where the tar is.
        path: its path there.
        name: how it is shown; the names of its videos begin with it.

    Raises:
        UnusableFileError: it is missing, cut off or damaged; none of it is used then.
    """
    found = place.find(path)
    contents = TarContents()
    captions: dict[str, str | None] = {}
    videos: dict[str, _Member] = {}
    for member in _members(place, path, found):
        shown = f"{name}/{printable(member.name)}"
        if member.kind == "folder":
            continue
        if member.kind != "file":
            message = f"{member.kind} in a tar file; only regular files are read"
            contents.refused.append(UnusableFileError("NotAFile", message).record(shown))
        elif os.path.basename(member.name).startswith("."):
            continue
        elif not is_video(member.name):
            contents.num_other_files += 1
            if member.head:
                captions[member.name] = caption_in(member.name, member.head)
        elif member.name in videos:
            message = "the tar file holds this name twice; the first one is used"
            error = UnusableFileError("Duplicate", message, stage="duplicate")
            contents.refused.append(error.record(shown))
        else:
            videos[member.name] = member
    for inside, member in videos.items():
        stem = os.path.splitext(inside)[0]
        contents.videos.append(
            SourceVideo(
                name=f"{name}/{printable(inside)}",
                location=found.location,
                offset=member.offset,
                num_bytes=member.num_bytes,
                version=found.version,
                caption=best_caption(stem, captions) or best_caption(_key(inside), captions),
            )
        )
    keys = {key for inside in videos for key in (os.path.splitext(inside)[0], _key(inside))}
    contents.num_other_files -= sum(os.path.splitext(other)[0] in keys for other in captions)
    return contents


def _key(name: str) -> str:
    """Return the sample key of WebDataset: all before the first dot of the last component."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _members(place: Place, path: str, found: FoundFile) -> Iterator[_Member]:
    try:
        with place.open(path, block_bytes=_BLOCK_BYTES) as file:
            yield from _read_members(file, found.num_bytes)
    except UnusableFileError:
        raise
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        message = f"not a whole tar file: {error}; download or write it again"
        raise UnusableFileError(type(error).__name__, printable(message)) from error
    except Exception as error:  # whatever the library of a store raises
        reason = error.strerror if isinstance(error, OSError) and error.strerror else explain(error)
        raise UnusableFileError(type(error).__name__, printable(reason)) from error


def _read_members(file: IO[bytes], num_bytes: int) -> Iterator[_Member]:
    headers = cast("IO[bytes]", _Headers(file))
    with tarfile.open(
        fileobj=headers, mode="r:", encoding="utf-8", errors="surrogateescape"
    ) as tar:
        end = 0
        while (info := tar.next()) is not None:
            # Negative sizes send a reader back to where it was, for ever.
            if info.size < 0 or info.offset_data <= end:
                raise tarfile.ReadError("a member of negative size")
            kind = _kind(info)
            if kind == "file" and info.offset_data + info.size > num_bytes:
                raise tarfile.ReadError("it is cut off inside a member")
            end = info.offset_data
            head = b""
            if kind == "file" and info.name.endswith(CAPTION_SUFFIXES):
                file.seek(info.offset_data)
                head = file.read(min(info.size, MAX_CAPTION_BYTES))
            yield _Member(
                name=info.name, kind=kind, offset=info.offset_data, num_bytes=info.size, head=head
            )
            tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
        file.seek(tar.offset)
        if file.read(len(_END)) != _END:
            raise tarfile.ReadError("it is cut off or damaged: the mark of its end is missing")
        if any(file.read(_AFTER_END)):
            raise tarfile.ReadError("more follows its end, as when tar files are joined by cat")


def _kind(info: tarfile.TarInfo) -> str:
    if info.isdir():
        return "folder"
    if info.issym() or info.islnk():
        return "a link"
    if info.issparse():
        return "a sparse file"
    return "file" if info.isreg() else "a device or pipe"
