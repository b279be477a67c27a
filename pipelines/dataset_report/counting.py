"""Counts what the report shows. In: the manifest and the state of the source. Out: `Details`.

Each number is counted once, here; the page and `report.json` both show these.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pipelines.config import RunConfig, redact_uri
from pipelines.dataset_report import histograms
from pipelines.dataset_report.details import (
    BucketCounts,
    ClipCounts,
    Details,
    Throughput,
    VideoCounts,
)
from pipelines.dataset_report.extremes import galleries
from pipelines.dataset_report.headline import headline
from pipelines.dataset_report.histograms import Histogram, binned, common, with_edges
from pipelines.dataset_report.refusals import dropped_groups, refused_groups
from pipelines.records import Manifest, QuarantineRecord
from pipelines.report import RunReport
from pipelines.selection.bucket import Bucket
from pipelines.shards import read_sidecar
from pipelines.source_state import QUARANTINE_NAME, SourceState, planned
from pipelines.store import Store

__all__ = ["details"]

_SETTINGS = ("seed", "data", "select", "decode", "first_stage", "condition", "encode")
_SECONDS_PER_HOUR = 3600


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
    kept: list[float] = []
    dropped: list[float] = []
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
