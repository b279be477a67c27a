"""What a scan finds in a video: candidate clips, with the numbers that they are chosen by."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from pipelines.records import _Record

__all__ = ["CandidateClip", "ClipScores", "VideoScan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScores(_Record):
    """Numbers that say what a clip is like, measured on what the clip shows of the video.

    Motion and light are those of the cropped picture at a short side of 256 pixels, whatever the
    size of the clip.
    """

    motion: float
    """Mean optical flow in px/frame of the clip; see `cil.metrics.motion`."""
    motion_consistent: float
    """The same, where pixels whose flow is inconsistent count as 0."""
    consistent_share: float
    """Share of consistent pixels, in [0, 1]."""
    jump: float
    """Largest motion between two frames over the median one; repeated frames are left out."""
    luma_mean: float
    """Mean brightness, 0 to 255."""
    luma_max: float
    """Brightest pixel of any frame, 0 to 255."""
    contrast: float
    """Standard deviation of the brightness within a frame, mean over the frames."""
    perceptual_hash: str
    """Hash of the middle frame, 16 hex digits; see `perceptual_hash`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateClip(_Record):
    """A clip that could be taken from a video."""

    bucket: str
    """Name of its bucket, for example 320x512x16."""
    shot: int
    """Number of its shot in the video, from 0."""
    start_s: float
    """Time of the first frame from the start of the video, in seconds."""
    end_s: float
    """Time just after the last frame, in seconds."""
    frames: list[int]
    """Number of the source frame behind each frame; they repeat where the source is slower."""
    crc32: list[int]
    """CRC-32 (zlib) of the bytes of each frame, RGB at the size of the bucket."""
    scores: ClipScores

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        """Build the record from plain data.

        Raises:
            DataError: fields are missing or unknown.
        """
        record = super(CandidateClip, cls).from_json(raw)
        return dataclasses.replace(record, scores=ClipScores.from_json(raw["scores"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoScan(_Record):
    """All that is known of a video once it was decoded."""

    clips: list[CandidateClip]
    """Candidates in order of time."""
    reason: str | None
    """Why there are no clips; None if there are."""
    num_frames: int
    """Frames of the video."""
    duration_s: float
    """Duration in seconds."""
    width: int
    """Width of the upright video in pixels."""
    height: int
    """Height of the upright video in pixels."""
    source_fps: float
    """Average frames per second of the video, in Hz."""
    shots: list[float]
    """Start of each shot from the start of the video, in seconds."""
    leftover_s: float
    """Seconds that are in no clip, mostly at the ends of shots."""

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        """Build the record from plain data.

        Raises:
            DataError: fields are missing or unknown.
        """
        record = super(VideoScan, cls).from_json(raw)
        return dataclasses.replace(
            record, clips=[CandidateClip.from_json(item) for item in raw["clips"]]
        )
