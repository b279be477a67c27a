"""What a listing consists of: videos, refused files, and the settings of a source."""

from dataclasses import dataclass

from pipelines.records import QuarantineRecord, _Record
from pipelines.sources.names import shortened

__all__ = ["VIDEO_SUFFIXES", "Listing", "SourceOptions", "SourceVideo", "UnusableFileError"]

VIDEO_SUFFIXES = frozenset(
    [
        ".3gp",
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".ts",
        ".webm",
        ".wmv",
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """How a source is read; most of it matters for tables only."""

    video_root: str | None = None
    """Folder or URL that the paths in a table are relative to, and must stay below; None takes the
    folder of the table. "/" allows every absolute path."""
    path_column: str | None = None
    """Column of a table that names the video files; None looks for a usual name."""
    caption_column: str | None = None
    """Column of a table with captions; None looks for a usual name and goes without if there is
    none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceVideo(_Record):
    """A video as it was found; its content was not looked at."""

    name: str
    """Stable and unique in the listing, relative, with forward slashes. Printable: what is not is
    escaped, so it is for people and for JSON, never a path."""
    location: str
    """Absolute local path or fsspec URL of the file with the bytes; the tar for a tar's member. Of
    a local path that is not UTF-8 the odd bytes are surrogate escapes, as `os.fsdecode` has it."""
    offset: int | None
    """Where the member begins in its tar, in bytes; None if the whole file is the video."""
    num_bytes: int
    """Size of the video."""
    version: str
    """Changes when the content may have changed: size and time locally, the etag in a store."""
    caption: str | None
    """Text that describes the video, if there is any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """What a source holds."""

    videos: tuple[SourceVideo, ...]
    """Videos, sorted by name."""
    refused: tuple[QuarantineRecord, ...]
    """What looks like a video or was named as one, but cannot be used; sorted by path."""
    num_other_files: int
    """Files that are neither videos nor captions; they are left alone."""


class UnusableFileError(Exception):
    """A single file cannot be used; becomes a record of the listing."""

    def __init__(self, exception: str, message: str, *, stage: str = "read") -> None:
        super().__init__(message)
        self.exception = exception
        self.message = message
        self.stage = stage

    def record(self, name: str) -> QuarantineRecord:
        """Return the record for the file that is shown as ``name``."""
        return QuarantineRecord(
            path=shortened(name),
            sha256=None,
            stage=self.stage,
            decoder=None,
            exception=self.exception,
            message=self.message,
            attempts=1,
        )
