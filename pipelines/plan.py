"""`cil plan`: what encoding would do, without doing it.

Lists the source, scans a few videos (or takes the data set's inventory where that is complete), and
says which clips would be kept, how many shards and bytes they make, and how long it would take.
Nothing is written but temporary files.
"""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cil.errors import ConfigError
from cil.models import ClipFirstStage, FirstStage, load_first_stage
from cil.models.first_stage import latent_frames
from cil.models.patch_moments import PatchMoments
from cil.models.patch_pca import PatchPCA
from pipelines.config import RunConfig, dataset_of
from pipelines.dataset_identity import refuse_other_identity, settings_identity
from pipelines.decode.clips import WantedClip
from pipelines.decode.process import DecoderProcess
from pipelines.encoders import first_stage_for_encoding
from pipelines.planning import extend_plan, without_copies
from pipelines.progress import stage_progress
from pipelines.records import VideoRecord
from pipelines.remote import shown_url
from pipelines.report import RunReport, Stopwatch
from pipelines.scan import is_unchanged, known_records, scan_one, scan_settings
from pipelines.selection.bucket import Bucket
from pipelines.selection.select import Selection
from pipelines.source_state import choose, source_options
from pipelines.sources import Listing, SourceVideo, list_videos, local_file, scratch_folder
from pipelines.store import open_store

__all__ = ["plan_encoding"]

_PROBED_VIDEOS = 50
_PROBED_CLIPS = 8
_RECORD_BYTES = 5000
"""Record, conditions and tar headers of a clip, in bytes; roughly."""
_THUMBNAIL_BYTES_PER_PIXEL = 0.3
"""Of a WebP thumbnail; roughly."""
_BYTES = {"float32": 4, "bfloat16": 2}


def plan_encoding(config: RunConfig, *, num_probed: int | None = None) -> RunReport:
    """Say what `encode` would do.

    Args:
        config: the run.
        num_probed: videos that are scanned if the data set's inventory is not complete; None takes
            a few.

    Returns:
        Counts by bucket and reason, shards, bytes and hours; estimated from the probed videos
        where ``inputs["estimated"]`` is true.

    Raises:
        ConfigError: the source is not there, or no video would be looked at.
    """
    if num_probed is None:
        num_probed = _PROBED_VIDEOS
    if num_probed < 1:
        raise ConfigError(f"--probe must be >= 1 video, got {num_probed}; 50 is usual")
    watch = Stopwatch()
    store = open_store(dataset_of(config))
    refuse_other_identity(store, settings_identity(config))
    listing = list_videos(config.data.videos, options=source_options(config))
    known = known_records(store, config)
    new = [video for video in listing.videos if not is_unchanged(video, known)]
    probed = _spread(listing.videos, num_probed) if new else list(listing.videos)
    started = time.monotonic()
    records = _records(config, probed, known)
    scan_s = (time.monotonic() - started) / max(len(probed), 1)
    videos, copies = without_copies(records, ())
    selection = choose(config, videos)
    factor = len(listing.videos) / max(len(probed), 1)
    encode_s = _seconds_per_clip(config, listing, videos, selection)
    return _report(
        config,
        listing=listing,
        records=records,
        num_copies=len(copies),
        videos=videos,
        selection=selection,
        factor=factor,
        num_new=len(new),
        scan_s=scan_s if new else 0.0,
        encode_s=encode_s,
        seconds=watch.seconds(),
    )


def _spread(videos: Sequence[SourceVideo], count: int) -> list[SourceVideo]:
    """Choose some videos that do not depend on the order of their names."""
    ordered = sorted(videos, key=lambda video: hashlib.sha256(video.name.encode()).digest())
    return ordered[:count]


def _records(
    config: RunConfig, videos: Sequence[SourceVideo], known: dict[str, VideoRecord]
) -> list[VideoRecord]:
    settings = scan_settings(config).to_json()
    records = []
    with (
        DecoderProcess(config.decode) as decoder,
        stage_progress("plan: probe videos", len(videos)) as progress,
    ):
        for video in videos:
            if is_unchanged(video, known):
                records.append(replace(known[video.name], caption=video.caption))
            else:
                records.append(scan_one(video, decoder, settings))
            progress.advance()
    return records


def _seconds_per_clip(
    config: RunConfig,
    listing: Listing,
    videos: dict[str, VideoRecord],
    selection: Selection,
) -> float | None:
    """Decode and encode a few clips; None if there are none, or the encoder is for a GPU."""
    chosen = [(sha, clips) for sha, clips in selection.kept.items() if clips][:_PROBED_CLIPS]
    if not chosen or (config.encode.use_gpu and not _has_gpu()):
        return None
    places = {video.name: video for video in listing.videos}
    first_stage: FirstStage | None = None
    if config.first_stage.path is not None:
        first_stage = first_stage_for_encoding(config.first_stage.path, config.encode)
    spent, count = 0.0, 0
    with DecoderProcess(config.decode) as decoder, scratch_folder() as scratch:
        for sha256, clips in chosen:
            bucket = Bucket.parse(clips[0].bucket)
            wanted = [
                WantedClip(
                    height=bucket.height, width=bucket.width, frames=clip.frames, crc32=clip.crc32
                )
                for clip in clips[:1]
            ]
            video = videos[sha256]
            assert video.probe is not None
            with local_file(places[video.name], scratch) as path:
                started = time.monotonic()
                for read in decoder.clips(path, wanted, sha256=sha256):
                    first_stage = first_stage or _fitted(config, read.frames)
                    first_stage.encode(read.frames)
                    count += 1
                spent += time.monotonic() - started
    return spent / count if count else None


def _fitted(config: RunConfig, frames: np.ndarray) -> FirstStage:
    moments = PatchMoments(patch_size=config.first_stage.patch_size)
    moments.update(frames)
    return PatchPCA.fit(moments, latent_channels=config.first_stage.latent_channels)


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _report(
    config: RunConfig,
    *,
    listing: Listing,
    records: Sequence[VideoRecord],
    num_copies: int,
    videos: dict[str, VideoRecord],
    selection: Selection,
    factor: float,
    num_new: int,
    scan_s: float,
    encode_s: float | None,
    seconds: float,
) -> RunReport:
    kept = Counter(clip.bucket for clips in selection.kept.values() for clip in clips)
    dropped = Counter(f"{clip.bucket}: {clip.reason}" for clip in selection.dropped)
    refused = Counter(
        f"{record.refused['stage']}: {record.refused['exception']}"
        for record in records
        if record.refused
    )
    too_short = sum(1 for video in videos.values() if video.scan and video.scan["reason"])
    per_shard = config.encode.videos_per_shard
    specs = extend_plan((), videos, selection.kept, videos_per_shard=per_shard)
    inputs = Counter(spec.bucket for spec in specs for _ in spec.inputs)
    shards = sum(math.ceil(round(count * factor) / per_shard) for count in inputs.values())
    num_bytes = sum(_clip_bytes(config, bucket) * count for bucket, count in kept.items())
    clips = sum(kept.values())
    workers = config.encode.num_workers
    hours = None
    if encode_s is not None:
        hours = (scan_s * num_new + encode_s * clips * factor) / workers / 3600
    return RunReport(
        stage="plan",
        reused=False,
        inputs={
            "videos": shown_url(config.data.videos),
            "files": len(listing.videos),
            "probed": len(records),
            "estimated": len(records) < len(listing.videos),
        },
        outputs={
            "kept_by_bucket": {name: round(count * factor) for name, count in sorted(kept.items())},
            "dropped_by_bucket_and_reason": {
                name: round(count * factor) for name, count in sorted(dropped.items())
            },
            "refused_by_reason": {
                name: round(count * factor) for name, count in sorted(refused.items())
            },
            "listing_refused": len(listing.refused),
            "hours": None if hours is None else round(hours, 4),
            "seconds_per_video_scanned": round(scan_s, 4),
            "seconds_per_clip_encoded": None if encode_s is None else round(encode_s, 4),
        },
        metrics={
            "clips": float(round(clips * factor)),
            "clips_dropped": float(round(len(selection.dropped) * factor)),
            "videos_refused": float(round(sum(refused.values()) * factor)),
            "videos_too_short": float(round(too_short * factor)),
            "copies": float(round(num_copies * factor)),
            "shards": float(shards),
            "gigabytes": round(num_bytes * factor / 1e9, 4),
        },
        seconds=seconds,
    )


def _clip_bytes(config: RunConfig, name: str) -> int:
    """Estimate the bytes of a stored clip from the shape of its latents."""
    bucket = Bucket.parse(name)
    if config.first_stage.path is None:
        channels, factor = config.first_stage.latent_channels, config.first_stage.patch_size
        frames, stored = bucket.num_frames, 2
    else:
        stage = load_first_stage(config.first_stage.path)
        channels, factor = stage.latent_channels, stage.downsampling
        frames = latent_frames(stage, bucket.num_frames)
        stored = 3 if isinstance(stage, ClipFirstStage) else 2  # with conditioning latents
    values = frames * channels * (bucket.height // factor) * (bucket.width // factor)
    thumbnail = round(_THUMBNAIL_BYTES_PER_PIXEL * bucket.height * bucket.width)
    return stored * values * _BYTES[config.encode.latents_dtype] + _RECORD_BYTES + thumbnail
