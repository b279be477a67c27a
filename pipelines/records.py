"""The records that cross stages: what is stored about a clip, a shard, a data set, a refused file.

All are frozen and go to JSON and back unchanged. `docs/data_format.md` describes the files.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

from cil.errors import DataError

__all__ = [
    "FORMAT_VERSION",
    "ClipRecord",
    "Manifest",
    "QuarantineRecord",
    "ShardEntry",
    "ShardSidecar",
    "ShardSpec",
    "VideoFile",
]

FORMAT_VERSION = 1
"""Version of the data set format; a reader refuses a newer one."""


class _Record:
    """JSON in and out for the frozen dataclasses below."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        """Build the record from plain data.

        Raises:
            DataError: fields are missing or unknown.
        """
        names = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if set(raw) != names:
            missing, extra = sorted(names - set(raw)), sorted(set(raw) - names)
            raise DataError(
                f"not a {cls.__name__}: {missing=}, {extra=}; it was written by another version"
            )
        return cls(**raw)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFile(_Record):
    """A source file as it was found."""

    path: str
    """Path relative to the source folder, with forward slashes."""
    sha256: str
    """Hash of the content."""
    num_bytes: int
    """Size of the file."""
    mtime_ns: int
    """Modification time, used only to know whether a known hash still holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRecord(_Record):
    """One clip: where it comes from and how it was cut."""

    key: str
    """Name of the sample in its shard: 32 hex digits of the hash of all that decides its bytes."""
    path: str
    """Source file, relative to the source folder."""
    content_sha256: str
    """Hash of the source file."""
    start_s: float
    """Time of the first frame from the start of the video, in seconds."""
    end_s: float
    """Time just after the last frame, in seconds."""
    fps: float
    """Frames per second of the clip, in Hz."""
    source_fps: float
    """Average frames per second of the video, in Hz."""
    num_frames: int
    """Frames in the clip."""
    num_distinct_frames: int
    """Different source frames among them; fewer than num_frames if the source is slower."""
    height: int
    """Height in pixels."""
    width: int
    """Width in pixels."""
    decoder: str
    """Library that decoded it."""
    caption: str | None = None
    """Text that describes the clip, if there is any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuarantineRecord(_Record):
    """A source file that was refused, and why."""

    path: str
    """Path relative to the source folder."""
    sha256: str | None
    """Hash of the content, or None if it could not be read."""
    stage: str
    """Where it was refused: read, duplicate, probe, decode or select."""
    decoder: str | None
    """Library that failed, if one did."""
    exception: str
    """Name of the exception."""
    message: str
    """What was wrong."""
    attempts: int
    """How often it was tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSpec(_Record):
    """A shard to be written: the unit of work and of restart."""

    name: str
    """File name without suffix, for example shard-000007."""
    generation: int
    """0 for the first encoding, then one more each time that new videos are added."""
    inputs: list[dict[str, str]]
    """Source files as {path, sha256}, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSidecar(_Record):
    """What a shard holds; written last, so its presence means that the shard is complete."""

    format_version: int
    name: str
    generation: int
    identity_hash: str
    """Hash of everything that decides the bytes besides the videos."""
    inputs: list[dict[str, Any]]
    """Source files as {path, sha256, clips}."""
    quarantined: list[dict[str, Any]]
    """`QuarantineRecord` of each input that was refused."""
    count: int
    """Clips in the shard; a shard with none has no tar file."""
    sha256: str | None
    """Hash of the tar file."""
    num_bytes: int
    """Size of the tar file."""
    keys: list[str]
    """Sample keys in the order of the file."""
    members: dict[str, dict[str, list[int]]]
    """key -> member suffix -> [offset, size] of its bytes in the tar file."""
    moments: dict[str, Any]
    """File name, hash and clip count of the shard's partial moments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry(_Record):
    """A shard as the manifest lists it."""

    name: str
    generation: int
    count: int
    sha256: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest(_Record):
    """A version of a data set: which shards, in which order, made how."""

    format_version: int
    fingerprint: str
    """Hash of the identity and of all shards: equal fingerprints mean equal bytes."""
    identity: dict[str, Any]
    """Everything that decides the bytes besides the videos: clips, first stage, types."""
    identity_hash: str
    """Hash of `identity`."""
    latents_shape: list[int]
    """(F, C, H, W) of the latents of one clip."""
    shards: list[dict[str, Any]]
    """`ShardEntry` of each shard with clips, in order."""
    totals: dict[str, int]
    """Counts: videos, videos_encoded, videos_quarantined, clips, shards, bytes."""
    quarantined_by_stage: dict[str, int] = field(default_factory=dict)
    """Refused files by stage."""

    def entries(self) -> list[ShardEntry]:
        """Return the shards as records."""
        return [ShardEntry.from_json(item) for item in self.shards]
