import dataclasses
import hashlib
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from cil.errors import DataError
from pipelines import dataset_report
from pipelines.config import content_hash, validate_config
from pipelines.planning import extend_plan, without_copies
from pipelines.records import (
    FORMAT_VERSION,
    ClipRecord,
    Manifest,
    QuarantineRecord,
    ShardSpec,
    VideoRecord,
)
from pipelines.report import RunReport, versions
from pipelines.selection.bucket import Bucket
from pipelines.selection.candidates import CandidateClip, ClipScores, VideoScan
from pipelines.selection.select import select
from pipelines.shards import EncodedClip, entry_of, tar_name, write_shard
from pipelines.source_state import SourceState, save_refusals
from pipelines.sources import Listing, SourceVideo
from pipelines.store import open_store

SMALL, LONG, TALL = "32x48x4", "32x48x8", "48x32x4"
EVIL = '<script>alert(1)</script> & "quoted"\nsecond line\u202e.mp4'


def scores(motion, luma):
    return ClipScores(
        motion=motion,
        motion_consistent=motion,
        consistent_share=1.0,
        jump=1.0,
        luma_mean=luma,
        luma_max=min(luma + 30.0, 255.0),
        contrast=20.0,
        perceptual_hash=hashlib.sha256(f"{motion} {luma}".encode()).hexdigest()[:16],
    )


def video(name, clips, *, fps=25.0, size=(640, 360), seconds=None, content=None, version="1"):
    """Make the record of a scanned video; clips are (bucket, motion, brightness[, frames])."""
    found, start = [], 0.0
    for bucket, motion, luma, *frames in clips:
        count = Bucket.parse(bucket).num_frames
        found.append(
            CandidateClip(
                bucket=bucket,
                shot=0,
                start_s=start,
                end_s=start + count / 8,
                frames=frames[0] if frames else list(range(count)),
                crc32=[0] * count,
                scores=scores(motion, luma),
            )
        )
        start += count / 8
    scan = VideoScan(
        clips=found,
        reason=None if found else "the video lasts 0.3 s, a clip 0.5 s",
        num_frames=100,
        duration_s=start + 0.25 if seconds is None else seconds,
        width=size[0],
        height=size[1],
        source_fps=fps,
        shots=[0.0],
        leftover_s=0.25,
    )
    return VideoRecord(
        name=name,
        version=version,
        num_bytes=1000,
        sha256=hashlib.sha256((content or name).encode(errors="replace")).hexdigest(),
        caption=None,
        probe={"container": "mp4", "codec": "h264", "decoder": "pyav"},
        scan=json.loads(json.dumps(scan.to_json())),
        refused=None,
    )


def refusal(name, *, stage="scan", exception="InvalidDataError", message="damaged", sha256=None):
    return QuarantineRecord(
        path=name,
        sha256=sha256,
        stage=stage,
        decoder=None,
        exception=exception,
        message=message,
        attempts=1,
    )


def broken(name, **why):
    return VideoRecord(
        name=name,
        version="1",
        num_bytes=10,
        sha256=None,
        caption=None,
        probe=None,
        scan=None,
        refused=refusal(name, **why).to_json(),
    )


def picture(red, size=(48, 32)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (red, 40, 90)).save(buffer, format="WEBP")
    return buffer.getvalue()


def encoded(spec, item, clip, thumbnail):
    bucket = Bucket.parse(spec.bucket)
    clip_id = f"{item['sha256']} {clip['start_s']} {spec.bucket}"
    record = ClipRecord(
        key=hashlib.sha256(clip_id.encode()).hexdigest()[:32],
        path=item["path"],
        content_sha256=item["sha256"],
        bucket=spec.bucket,
        shot=0,
        start_s=clip["start_s"],
        end_s=clip["end_s"],
        fps=8.0,
        source_fps=25.0,
        num_frames=bucket.num_frames,
        frames=clip["frames"],
        height=bucket.height,
        width=bucket.width,
        decoder="pyav",
        scores=clip["scores"],
        fps_id=7,
        motion_bucket_id=0,
    )
    latents = torch.zeros(bucket.num_frames, 2, 2, 2)
    return EncodedClip(
        record=record,
        mean=latents,
        std=torch.ones_like(latents),
        condition={"image_embeds": torch.zeros(1, 4)},
        thumbnail=thumbnail(clip),
    )


def selected(config, videos, specs):
    settled = {}
    for spec in specs:
        for item in spec.inputs:
            starts = [clip["start_s"] for clip in item["clips"]]
            settled.setdefault(item["sha256"], []).extend(starts)
    scans = {sha: VideoScan.from_json(record.scan) for sha, record in videos.items()}
    return select(scans, config.select, settled=settled)


def data_set(
    folder,
    records,
    *,
    before=None,
    listed=(),
    late=(),
    settings=None,
    per_shard=2,
    seconds=20.0,
    reused=False,
    thumbnail=lambda clip: picture(int(clip["scores"]["luma_mean"])),
):
    """Write a data set of scanned videos and return what the report is made of.

    ``before`` are the records of an earlier run, ``late`` pairs of (name, bucket) that fail when
    they are encoded.
    """
    store = open_store(str(folder))
    config = validate_config(
        {"data": {"videos": "clips <b>", "buckets": [SMALL, LONG, TALL]}, **(settings or {})},
        source="the tests",
    )
    specs = []
    for now in [records] if before is None else [before, records]:
        videos, copies = without_copies(now, specs)
        selection = selected(config, videos, specs)
        specs = extend_plan(specs, videos, selection.kept, videos_per_shard=per_shard)
    plan = {"identity": {}, "shards": [spec.to_json() for spec in specs]}
    store.write("plan.json", json.dumps(plan).encode())
    sidecars = [written(store, spec, set(late), thumbnail) for spec in specs]
    short = {sha: record for sha, record in videos.items() if not record.scan["clips"]}
    source = SourceState(
        listing=Listing(
            videos=tuple(
                SourceVideo(
                    name=record.name,
                    location=f"/videos/{number}",
                    offset=None,
                    num_bytes=record.num_bytes,
                    version=record.version,
                    caption=None,
                )
                for number, record in enumerate(records)
            ),
            refused=tuple(listed),
            num_other_files=3,
        ),
        records=records,
        videos={sha: record for sha, record in videos.items() if sha not in short},
        refused=[
            *listed,
            *(QuarantineRecord.from_json(r.refused) for r in records if r.refused),
            *copies,
            *(
                refusal(
                    record.name,
                    stage="select",
                    exception="TooShort",
                    message=record.scan["reason"],
                    sha256=sha,
                )
                for sha, record in short.items()
            ),
        ],
        selection=selection,
    )
    manifest = manifest_of(sidecars, source)
    store.write("manifest.json", json.dumps(manifest.to_json()).encode())
    lost = [QuarantineRecord.from_json(raw) for each in sidecars for raw in each.quarantined]
    save_refusals(store, [*lost, *source.refused], selection)
    report = RunReport(
        stage="encode",
        reused=reused,
        inputs={
            "videos": config.data.videos,
            "other_files": 3,
            "warnings": dataset_report.warnings_of(store, config, source),
        },
        outputs={"dataset": store.url()},
        metrics={key: float(value) for key, value in manifest.totals.items()},
        seconds=seconds,
    )
    return SimpleNamespace(
        store=store,
        config=config,
        manifest=manifest,
        source=source,
        report=report,
        sidecars=sidecars,
    )


def written(store, spec, late, thumbnail):
    lost = [item for item in spec.inputs if (item["path"], spec.bucket) in late]
    return write_shard(
        store,
        spec,
        (
            encoded(spec, item, clip, thumbnail)
            for item in spec.inputs
            if item not in lost
            for clip in item["clips"]
        ),
        identity_hash="identity",
        quarantined=[
            refusal(item["path"], stage="decode", exception="Changed", sha256=item["sha256"])
            for item in lost
        ],
    )


def manifest_of(sidecars, source):
    inputs = [item for sidecar in sidecars for item in sidecar.inputs]
    there = {item["sha256"] for item in inputs if item["clips"]}
    lost = {raw["sha256"] for sidecar in sidecars for raw in sidecar.quarantined}
    now, full = set(source.videos), [sidecar for sidecar in sidecars if sidecar.count]
    buckets = Counter()
    for sidecar in full:
        buckets[sidecar.bucket] += sidecar.count
    return Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=content_hash([sidecar.sha256 for sidecar in full]),
        identity={},
        identity_hash="identity",
        buckets={
            name: {"latents_shape": [Bucket.parse(name).num_frames, 2, 2, 2], "clips": count}
            for name, count in buckets.items()
        },
        shards=[entry_of(sidecar) for sidecar in full],
        totals={
            "videos": len(source.listing.videos) + len(source.listing.refused),
            "videos_encoded": len(there & now),
            "videos_quarantined": len(source.refused) + len((lost & now) - there),
            "videos_without_clips": len(now - there - lost),
            "videos_gone": len(there - now),
            "clips": sum(buckets.values()),
            "clips_dropped": len(source.selection.dropped),
            "shards": len(full),
            "bytes": sum(sidecar.num_bytes for sidecar in full),
        },
    )
