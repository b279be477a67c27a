"""Which videos there are and which shard each one goes to.

In: a folder. Out: an inventory (every video file with the hash of its content, and every file that
was refused) and a plan (shard specs). The plan only grows: videos that arrive later get new shards,
so shards that exist never change.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cil.errors import ConfigError
from pipelines.records import QuarantineRecord, ShardSpec, VideoFile
from pipelines.storage import sha256_of_file

__all__ = ["VIDEO_SUFFIXES", "Inventory", "check_source_folder", "extend_plan", "take_inventory"]

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
class Inventory:
    """What a source folder holds."""

    videos: tuple[VideoFile, ...]
    """Video files with different content, sorted by the hash of their content."""
    refused: tuple[QuarantineRecord, ...]
    """Files that cannot be read, and copies of a file that is already there."""
    num_other_files: int
    """Files that are not videos by their suffix; they are left alone."""


def check_source_folder(folder: str) -> None:
    """Check that a folder with at least one video file was named.

    Raises:
        ConfigError: no folder, a missing or unreadable one, or one without video files.
    """
    if not folder:
        raise ConfigError(
            "data.videos is not set; give a folder with video files: --data.videos FOLDER"
        )
    path = Path(folder)
    if not os.path.isdir(path):
        what = "is a file, not a folder" if os.path.exists(path) else "does not exist"
        raise ConfigError(f"data.videos: {folder} {what}; give a folder with video files")
    found, others, _ = _list_files(path)
    if not found:
        suffixes = ", ".join(sorted(VIDEO_SUFFIXES))
        example = f", for example {others[0]}" if others else ""
        raise ConfigError(
            f"data.videos: {folder} has no video files ({len(others)} other files{example}); "
            f"files with these suffixes count: {suffixes}"
        )


def take_inventory(folder: Path, known: dict[str, VideoFile]) -> Inventory:
    """List the videos in a folder and hash their content.

    Args:
        folder: source folder, searched with its sub-folders.
        known: files of an earlier inventory by path; a hash is reused while size and time agree.
    """
    found, others, refused = _list_files(folder)
    videos: dict[str, VideoFile] = {}
    for path in found:
        try:
            status = (folder / path).stat()
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
                refused.append(_refuse(path, None, "read", "NotAFile", "not a regular file"))
                continue
            before = known.get(path)
            unchanged = before is not None and (before.num_bytes, before.mtime_ns) == (
                status.st_size,
                status.st_mtime_ns,
            )
            sha256 = before.sha256 if before and unchanged else sha256_of_file(folder / path)
        except OSError as error:
            refused.append(_refuse(path, None, "read", type(error).__name__, str(error.strerror)))
            continue
        if sha256 in videos:
            message = f"same content as {videos[sha256].path}"
            refused.append(_refuse(path, sha256, "duplicate", "Duplicate", message))
            continue
        videos[sha256] = VideoFile(
            path=path, sha256=sha256, num_bytes=status.st_size, mtime_ns=status.st_mtime_ns
        )
    return Inventory(
        videos=tuple(videos[sha256] for sha256 in sorted(videos)),
        refused=tuple(refused),
        num_other_files=len(others),
    )


def extend_plan(
    plan: list[ShardSpec], videos: tuple[VideoFile, ...], videos_per_shard: int
) -> list[ShardSpec]:
    """Add shards for the videos that no shard of the plan has.

    Videos come in the order of their content hashes, which spreads them over the shards evenly and
    independently of their names. All clips of one video are in one shard, so it is decoded once.

    Returns:
        The old specs unchanged, then the new ones.
    """
    planned = {item["sha256"] for spec in plan for item in spec.inputs}
    new = [video for video in videos if video.sha256 not in planned]
    generation = max((spec.generation for spec in plan), default=-1) + 1
    specs = list(plan)
    for start in range(0, len(new), videos_per_shard):
        part = new[start : start + videos_per_shard]
        specs.append(
            ShardSpec(
                name=f"shard-{len(specs):06d}",
                generation=generation,
                inputs=[{"path": video.path, "sha256": video.sha256} for video in part],
            )
        )
    return specs


def _list_files(folder: Path) -> tuple[list[str], list[str], list[QuarantineRecord]]:
    """Return the relative paths of video files and of all others, sorted, and unreadable folders.

    Hidden files and folders are left alone, links to folders are not followed.
    """
    videos: list[str] = []
    others: list[str] = []
    refused: list[QuarantineRecord] = []

    def refuse(error: OSError) -> None:
        path = Path(error.filename).relative_to(folder).as_posix()
        refused.append(_refuse(path, None, "read", type(error).__name__, str(error.strerror)))

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(parent, name).relative_to(folder).as_posix()
            if name.startswith("."):
                continue
            (videos if Path(name).suffix.lower() in VIDEO_SUFFIXES else others).append(path)
    return sorted(videos), sorted(others), refused


def _refuse(
    path: str, sha256: str | None, stage: str, exception: str, message: str
) -> QuarantineRecord:
    return QuarantineRecord(
        path=path,
        sha256=sha256,
        stage=stage,
        decoder=None,
        exception=exception,
        message=message,
        attempts=1,
    )
