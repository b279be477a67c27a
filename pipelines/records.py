"""The records that cross stages: what is stored about a clip, a shard, a data set, a refused file.

All are frozen and go to JSON and back unchanged. `docs/data_format.md` describes the files.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from cil.errors import DataError
from pipelines.record_fields import wrong_field

__all__ = [
    "FORMAT_VERSION",
    "ClipRecord",
    "Manifest",
    "QuarantineRecord",
    "ShardEntry",
    "ShardSidecar",
    "ShardSpec",
    "VideoRecord",
]

FORMAT_VERSION = 2
"""Version of the data set format; a reader refuses a newer one."""
_LATENTS_AXES = 4
"""F, C, h, w."""
_MOST_BYTES = 2**50
"""No shard is larger, and no axis longer."""


class _Record:
    """JSON in and out for the frozen dataclasses below."""

    __slots__ = ()
    _optional: ClassVar[frozenset[str]] = frozenset()
    """Fields that are left out where they are None, as in files that do not know them."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        raw = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {k: v for k, v in raw.items() if v is not None or k not in self._optional}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        """Build the record from plain data.

        Raises:
            DataError: fields are missing or unknown, or have values of another type.
        """
        if not isinstance(raw, dict):
            raise DataError(f"not a {cls.__name__}: got {type(raw).__name__}; the file is damaged")
        names = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if set(raw) | cls._optional != names:
            missing = sorted(names - cls._optional - set(raw))
            extra = sorted(set(raw) - names)
            raise DataError(
                f"not a {cls.__name__}: {missing=}, {extra=}; it was written by another version"
            )
        wrong = wrong_field(cls, raw)
        if wrong:
            raise DataError(f"not a {cls.__name__}: {wrong}; the file is damaged")
        return cls(**raw)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRecord(_Record):
    """A source video and what scanning it found: a line of the inventory."""

    name: str
    """Name of the video in its source; stable and printable."""
    version: str
    """Changes when the content may have changed."""
    num_bytes: int
    """Size of the file."""
    sha256: str | None
    """Hash of the content; None if it could not be read."""
    caption: str | None
    """Text that describes the video, if there is any."""
    probe: dict[str, str] | None
    """Container, codec and the decoder that scanned it; None if it was refused."""
    scan: dict[str, Any] | None
    """`VideoScan`: its candidate clips and their scores; None if it was refused."""
    refused: dict[str, Any] | None
    """`QuarantineRecord`: why it was refused; None if it was not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRecord(_Record):
    """One clip: where it comes from, how it was cut, and how it scored."""

    key: str
    """Name of the sample in its shard: 32 hex digits of the hash of what decides its latents."""
    path: str
    """Name of the source video."""
    content_sha256: str
    """Hash of the source video."""
    bucket: str
    """Height x width x frames of the clip, for example 320x512x16."""
    shot: int
    """Number of the shot in the video that the clip lies in, from 0."""
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
    frames: list[int]
    """Number of each frame in the video, in the order of presentation, from 0."""
    height: int
    """Height in pixels."""
    width: int
    """Width in pixels."""
    decoder: str
    """Library that scanned the video; its frames are the ones that count."""
    scores: dict[str, Any]
    """`ClipScores`: motion, light, consistency, perceptual hash."""
    fps_id: float
    """SVD's micro-condition for the frame rate."""
    motion_bucket_id: int
    """SVD's micro-condition for the amount of motion, 0 to 255, from the motion score."""
    caption: str | None = None
    """Text that describes the clip, if there is any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuarantineRecord(_Record):
    """A source file that was refused, and why."""

    path: str
    """Name of the source video."""
    sha256: str | None
    """Hash of the content, or None if it could not be read."""
    stage: str
    """Where it was refused: read, duplicate, probe, scan, decode, clips or select."""
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
    bucket: str
    """Height x width x frames of all of its clips."""
    inputs: list[dict[str, Any]]
    """Source videos as {path, sha256, caption, source_fps, decoder, clips}, in order; ``clips`` are
    `CandidateClip`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSidecar(_Record):
    """What a shard holds; written last, so its presence means that the shard is complete."""

    format_version: int
    name: str
    generation: int
    bucket: str
    identity_hash: str
    """Hash of everything that decides the bytes besides the videos."""
    spec_hash: str
    """Hash of the `ShardSpec` that it was made from."""
    inputs: list[dict[str, Any]]
    """Source videos as {path, sha256, clips}, with the number of clips that were encoded."""
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
    """Hash, clip count and variance of the shard's partial moments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry(_Record):
    """A shard as the manifest lists it."""

    name: str
    generation: int
    bucket: str
    count: int
    sha256: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest(_Record):
    """A version of a data set: which shards, in which order, made how."""

    _optional: ClassVar[frozenset[str]] = frozenset({"null_condition"})
    format_version: int
    fingerprint: str
    """Hash of the identity and of all shards: equal fingerprints mean equal bytes."""
    identity: dict[str, Any]
    """Everything that decides the bytes besides the videos: clips, first stage, types."""
    identity_hash: str
    """Hash of `identity`."""
    buckets: dict[str, dict[str, Any]]
    """By name of the bucket: ``latents_shape`` (F, C, h, w) and the number of ``clips``."""
    shards: list[dict[str, Any]]
    """`ShardEntry` of each shard with clips, in order."""
    totals: dict[str, int]
    """Counts: videos, videos_encoded, videos_without_clips, videos_quarantined, videos_gone,
    clips, clips_dropped, shards, bytes."""
    quarantined_by_stage: dict[str, int] = field(default_factory=dict)
    """Refused files by stage."""

    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    """Candidate clips that selection dropped, by reason."""

    null_condition: str | None = None
    """Hash of the file of the null condition; None without texts, and in older data sets."""

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        """Build the record from plain data.

        Raises:
            DataError: fields are missing, unknown or of another type, a shard is none, or a bucket
                has no shape.
        """
        manifest = super(Manifest, cls).from_json(raw)
        for name, bucket in manifest.buckets.items():
            shape = bucket.get("latents_shape")
            sizes = shape if isinstance(shape, list) and len(shape) == _LATENTS_AXES else [None]
            if not all(type(size) is int and 0 < size < _MOST_BYTES for size in sizes):
                raise DataError(f"not a Manifest: the latents_shape of {name!r} is {shape!r}")
        for entry in manifest.entries():
            if entry.bucket not in manifest.buckets:
                raise DataError(f"not a Manifest: a shard is of the bucket {entry.bucket!r}")
            if not 0 <= entry.count <= entry.num_bytes < _MOST_BYTES:
                raise DataError(
                    f"not a Manifest: a shard has {entry.count} clips in {entry.num_bytes} bytes"
                )
        return manifest

    def entries(self) -> list[ShardEntry]:
        """Return the shards as records."""
        return [ShardEntry.from_json(item) for item in self.shards]
