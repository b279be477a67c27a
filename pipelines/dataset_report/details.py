"""The numbers of the report. In: the manifest and the state of the source. Out: `Details`.

Each number is counted once, here; the page and `report.json` both show these.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.config import RunConfig, redact_uri
from pipelines.dataset_report import histograms
from pipelines.dataset_report.extremes import Gallery, galleries
from pipelines.dataset_report.histograms import Histogram, binned, common, with_edges
from pipelines.dataset_report.refusals import (
    DroppedGroup,
    RefusedGroup,
    dropped_groups,
    refused_groups,
)
from pipelines.records import Manifest, QuarantineRecord
from pipelines.report import RunReport
from pipelines.selection.bucket import Bucket
from pipelines.shards import read_sidecar
from pipelines.source_state import QUARANTINE_NAME, SourceState, planned
from pipelines.store import Store

__all__ = ["BucketCounts", "ClipCounts", "Details", "Throughput", "VideoCounts", "details"]

_SETTINGS = ("seed", "data", "select", "decode", "first_stage", "condition", "encode")
_SECONDS_PER_HOUR = 3600


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


def details(
    store: Store, config: RunConfig, manifest: Manifest, source: SourceState, report: RunReport
) -> Details:
    """Count everything.

    Args:
        store: the data set, with plan, manifest and shards.
        config: the run.
        manifest: of the data set.
        source: the source as it is now.
        report: of the stage.
    """
    videos = _videos(manifest, source)
    buckets = [_bucket(name, manifest, config.data.fps) for name in sorted(manifest.buckets)]
    clips = _clips(store, manifest, source, sum(bucket.hours for bucket in buckets))
    refused = _refused(store, source)
    return Details(
        headline=headline(videos, clips, len(buckets)),
        videos=videos,
        clips=clips,
        buckets=buckets,
        histograms=_histograms(config, source),
        quarantine=refused_groups(refused),
        num_quarantine_records=len(refused),
        dropped=dropped_groups(source.selection.dropped, source.videos),
        flagged=dropped_groups(source.selection.flagged, source.videos),
        extremes=galleries(store, manifest, source),
        throughput=None if report.reused else _throughput(videos, clips, report.seconds),
        fingerprint=manifest.fingerprint,
        settings=_settings(config),
    )


def headline(videos: VideoCounts, clips: ClipCounts, num_buckets: int) -> str:
    """Say in words what happened."""
    here = clips.total - clips.of_gone_videos
    if videos.encoded < videos.total:
        who = f"{videos.encoded:,} of {_counted(videos.total, 'video')}"
    else:
        who = "The only video" if videos.total == 1 else f"All {videos.total:,} videos"
    what = f"{who} gave {_counted(here, 'clip')}"
    if num_buckets > 1:
        what += f" of {num_buckets} sizes"
    rest = []
    if videos.quarantined:
        rest.append(f"{videos.quarantined:,} {_are(videos.quarantined)} in quarantine")
    if videos.without_clips:
        rest.append(f"{videos.without_clips:,} gave no clip that was kept")
    text = f"{what}; {' and '.join(rest) or 'nothing is in quarantine'}."
    if videos.gone:
        text += (
            f" The data set also holds {_counted(clips.of_gone_videos, 'clip')} of "
            f"{_counted(videos.gone, 'video')} that the source no longer has."
        )
    return text


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _scans(source: SourceState) -> Iterator[dict[str, Any]]:
    """Yield the scan of every video that could be read."""
    return (record.scan for record in source.records if record.scan is not None)


def _scans_of_videos(source: SourceState) -> Iterator[dict[str, Any]]:
    """Yield one scan of each content that clips can be taken from."""
    return (video.scan for video in source.videos.values() if video.scan is not None)


def _videos(manifest: Manifest, source: SourceState) -> VideoCounts:
    totals = manifest.totals
    readable = [record for record in source.records if record.scan is not None]
    return VideoCounts(
        total=totals["videos"],
        encoded=totals["videos_encoded"],
        quarantined=totals["videos_quarantined"],
        without_clips=totals["videos_without_clips"],
        gone=totals["videos_gone"],
        readable=len(readable),
        hours=sum(scan["duration_s"] for scan in _scans(source)) / _SECONDS_PER_HOUR,
        num_bytes=sum(record.num_bytes for record in readable),
    )


def _clips(store: Store, manifest: Manifest, source: SourceState, hours: float) -> ClipCounts:
    selection = source.selection
    kept = [clip for clips in selection.kept.values() for clip in clips]
    candidates = sum(len(scan["clips"]) for scan in _scans_of_videos(source))
    total = manifest.totals["clips"]
    of_gone = _clips_of_gone_videos(store, source) if manifest.totals["videos_gone"] else 0
    return ClipCounts(
        candidates=candidates,
        kept=len(kept),
        dropped=len(selection.dropped),
        flagged=len(selection.flagged),
        lost=len(kept) + of_gone - total,
        of_gone_videos=of_gone,
        total=total,
        hours=hours,
        num_frames=sum(len(clip.frames) for clip in kept),
        num_repeated_frames=sum(len(clip.frames) - len(set(clip.frames)) for clip in kept),
    )


def _clips_of_gone_videos(store: Store, source: SourceState) -> int:
    count = 0
    for spec in planned(store):
        if any(item["sha256"] not in source.videos for item in spec.inputs):
            inputs = read_sidecar(store, spec.name).inputs
            count += sum(item["clips"] for item in inputs if item["sha256"] not in source.videos)
    return count


def _bucket(name: str, manifest: Manifest, fps: float) -> BucketCounts:
    size, known = Bucket.parse(name), manifest.buckets[name]
    entries = [entry for entry in manifest.entries() if entry.bucket == name]
    return BucketCounts(
        name=name,
        height=size.height,
        width=size.width,
        num_frames=size.num_frames,
        latents_shape=list(known["latents_shape"]),
        clips=known["clips"],
        hours=known["clips"] * size.num_frames / fps / _SECONDS_PER_HOUR,
        shards=len(entries),
        num_bytes=sum(entry.num_bytes for entry in entries),
    )


def _histograms(config: RunConfig, source: SourceState) -> dict[str, Histogram]:
    scans, select = list(_scans(source)), config.select
    sizes = (f"{scan['width']} x {scan['height']}" for scan in scans)
    return {
        "duration": binned(
            "Duration of the videos",
            "s",
            histograms.DURATIONS_S,
            (scan["duration_s"] for scan in scans),
        ),
        "resolution": common("Resolution of the videos", "width x height", sizes),
        "source_fps": common(
            "Frame rate of the videos",
            "Hz",
            (f"{scan['source_fps']:.0f}" for scan in scans),
            numeric=True,
        ),
        "motion": binned(
            "Motion of the clips",
            "px/frame",
            with_edges(histograms.MOTION, select.min_motion, select.max_motion),
            *_scores(source, "motion"),
        ),
        "brightness": binned(
            "Brightness of the clips",
            "0 to 255",
            with_edges(histograms.BRIGHTNESS, select.min_luma),
            *_scores(source, "luma_mean"),
        ),
    }


def _scores(source: SourceState, name: str) -> tuple[list[float], list[float]]:
    """Return a score of all kept and of all dropped clips."""
    kept, dropped = [], []
    for sha256, video in source.videos.items():
        assert video.scan is not None
        starts = {clip.start_s for clip in source.selection.kept[sha256]}
        for clip in video.scan["clips"]:
            (kept if clip["start_s"] in starts else dropped).append(clip["scores"][name])
    return kept, dropped


def _refused(store: Store, source: SourceState) -> list[QuarantineRecord]:
    """Return all refusals, those that came up while clips were encoded too."""
    if not store.exists(QUARANTINE_NAME):
        return source.refused
    lines = store.read(QUARANTINE_NAME).splitlines()
    return [QuarantineRecord.from_json(json.loads(line)) for line in lines]


def _throughput(videos: VideoCounts, clips: ClipCounts, seconds: float) -> Throughput | None:
    if seconds <= 0:
        return None
    return Throughput(
        seconds=seconds,
        videos_per_s=videos.total / seconds,
        clips_per_s=clips.total / seconds,
        video_hours_per_hour=videos.hours * _SECONDS_PER_HOUR / seconds,
    )


def _settings(config: RunConfig) -> dict[str, Any]:
    raw = asdict(config)
    settings: dict[str, Any] = _without_secrets({name: raw[name] for name in _SETTINGS})
    return settings


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(item) for item in value]
    return redact_uri(value) if isinstance(value, str) else value
