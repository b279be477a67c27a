"""The bytes of a listed video as a local file, which is what decoders open."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cil.errors import DataError
from pipelines.remote import explain, is_url, object_version, open_url, shown_url
from pipelines.sources.video import VIDEO_SUFFIXES, SourceVideo

__all__ = ["local_file", "scratch_folder"]

_CHUNK_BYTES = 2**24
_SCRATCH = "cil-videos"
_OUR_DISK = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EROFS])


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a temporary folder for copies, and delete those of processes that were killed."""
    root = Path(tempfile.gettempdir()) / f"{_SCRATCH}-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    for left in root.iterdir():
        owner = left.name.partition(".")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f"{os.getpid()}.") as folder:
        yield Path(folder)


@contextmanager
def local_file(video: SourceVideo, scratch: Path) -> Iterator[Path]:
    """Give a video as a local file.

    Args:
        video: what `list_videos` found.
        scratch: existing folder for temporary copies. A copy lies in a folder of its own there,
            which `pipelines.storage.remove_temporaries` knows, should the process be killed.

    Yields:
        The file itself if it is a whole local file, else a temporary copy under a safe name with
        the suffix of the video. The copy is removed at the end.

    Raises:
        DataError: the bytes cannot be read, or are no longer what was listed.
    """
    if video.offset is None and not is_url(video.location):
        yield Path(video.location)
        return
    folder = Path(tempfile.mkdtemp(prefix=".source-", suffix=".tmp", dir=scratch))
    try:
        path = folder / f"video{_suffix(video)}"
        with path.open("wb") as file:
            try:
                copied = _copy(video, file)
            except DataError:
                raise
            except Exception as error:  # whatever the library of a store raises
                if isinstance(error, OSError) and error.errno in _OUR_DISK:
                    raise  # not the video's fault
                raise DataError(f"cannot read {video.name}: {explain(error)}") from error
        if copied != video.num_bytes:
            raise DataError(
                f"{video.name} gave {copied} bytes, {video.num_bytes} were listed; list it again"
            )
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _suffix(video: SourceVideo) -> str:
    """Return the suffix by which a demuxer may choose, and nothing that was not foreseen."""
    names = (video.name, video.location.partition("?")[0])
    suffixes = (os.path.splitext(name)[1].lower() for name in names)
    return next((suffix for suffix in suffixes if suffix in VIDEO_SUFFIXES), "")


def _copy(video: SourceVideo, file: IO[bytes]) -> int:
    """Copy the bytes of a video; returns how many there were."""
    if is_url(video.location):
        return _copy_remote(video, file)
    with open(video.location, "rb") as tar:
        status = os.fstat(tar.fileno())
        _check_version(video, f"{status.st_size}:{status.st_mtime_ns}")
        tar.seek(video.offset or 0)
        left = video.num_bytes
        while left and (part := tar.read(min(left, _CHUNK_BYTES))):
            left -= file.write(part)
    return video.num_bytes - left


def _copy_remote(video: SourceVideo, file: IO[bytes]) -> int:
    files, path = open_url(video.location, f"the address of {video.name}")
    _check_version(video, object_version(files.info(path)))
    if video.offset is None:
        files.get_file(path, file.name)
        return os.stat(file.name).st_size
    end = video.offset + video.num_bytes
    for start in range(video.offset, end, _CHUNK_BYTES):
        file.write(files.cat_file(path, start=start, end=min(start + _CHUNK_BYTES, end)))
    return file.tell()


def _check_version(video: SourceVideo, version: str) -> None:
    if version != video.version:
        raise DataError(
            f"{video.name} changed after it was listed ({shown_url(video.location)}); list it again"
        )
