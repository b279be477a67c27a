"""What the report shows, as records that go to JSON: counts, distributions, examples."""

from dataclasses import asdict, dataclass
from typing import Any

from pipelines.dataset_report.extremes import Gallery
from pipelines.dataset_report.histograms import Histogram
from pipelines.dataset_report.refusals import DroppedGroup, RefusedGroup

__all__ = ["BucketCounts", "ClipCounts", "Details", "Throughput", "VideoCounts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoCounts:
    """Videos; total = encoded + quarantined + without_clips."""

    total: int
    """Videos of the source, those that could not be used too."""
    encoded: int
    """Videos with clips in the data set."""
    quarantined: int
    """Videos that were refused."""
    without_clips: int
    """Good videos whose clips were all dropped."""
    gone: int
    """Contents that have clips in the data set and are no longer in the source; not in total."""
    readable: int
    """Videos that could be decoded from the first frame to the last; copies count."""
    hours: float
    """Duration of the readable videos in hours."""
    num_bytes: int
    """Size of the readable videos."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipCounts:
    """Clips; candidates = kept + dropped, total = kept - lost + of_gone_videos."""

    candidates: int
    """Clips that could be taken from the videos."""
    kept: int
    """Clips that were chosen."""
    dropped: int
    """Clips that were not."""
    flagged: int
    """Kept clips that a rule would have dropped if score_only were off."""
    lost: int
    """Chosen clips that could not be decoded again when they were encoded."""
    of_gone_videos: int
    """Clips of videos that are no longer in the source."""
    total: int
    """Clips of the data set."""
    hours: float
    """Duration of the clips of the data set in hours; what overlaps counts more than once."""
    num_frames: int
    """Frames of the chosen clips."""
    num_repeated_frames: int
    """Frames of the chosen clips that show the same source frame as one before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketCounts:
    """What the data set has of one size."""

    name: str
    height: int
    width: int
    num_frames: int
    latents_shape: list[int]
    """(F, C, h, w) of a clip's latents."""
    clips: int
    hours: float
    shards: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """Amounts of the whole data set over the wall time of the run that finished it."""

    seconds: float
    videos_per_s: float
    clips_per_s: float
    video_hours_per_hour: float
    """Hours of video per hour."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Details:
    """Everything that the page shows, besides pictures."""

    headline: str
    """What happened, in one sentence."""
    videos: VideoCounts
    clips: ClipCounts
    buckets: list[BucketCounts]
    histograms: dict[str, Histogram]
    quarantine: list[RefusedGroup]
    """Most frequent reason first."""
    num_quarantine_records: int
    """Lines of quarantine.jsonl; a video with clips of several sizes can have several."""
    dropped: list[DroppedGroup]
    """Most frequent reason first."""
    flagged: list[DroppedGroup]
    """The same for clips that are kept because of score_only."""
    extremes: list[Gallery]
    throughput: Throughput | None
    """None if nothing was done, because everything was there."""
    fingerprint: str
    """Of the data set."""
    settings: dict[str, Any]
    """Sections of the configuration that decide the data set, without secrets."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)
