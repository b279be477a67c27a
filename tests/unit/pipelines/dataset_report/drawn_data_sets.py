"""Draw data sets with every kind of video and clip."""

import dataclasses
import hashlib
import io
import json
from collections import Counter
from types import SimpleNamespace

import torch
from PIL import Image

from pipelines import dataset_report
from pipelines.config import content_hash, redact_uri, validate_config
from pipelines.planning import extend_plan, without_copies
from pipelines.records import (
    FORMAT_VERSION,
    ClipRecord,
    Manifest,
    QuarantineRecord,
    VideoRecord,
)
from pipelines.report import RunReport
from pipelines.selection.bucket import Bucket
from pipelines.selection.candidates import CandidateClip, ClipScores, VideoScan
from pipelines.selection.select import select
from pipelines.shards import EncodedClip, entry_of, write_shard
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
            "videos": redact_uri(config.data.videos),
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
    shards = [entry_of(sidecar) for sidecar in full]
    return Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=content_hash({"identity": {}, "shards": shards}),
        identity={},
        identity_hash="identity",
        buckets={
            name: {"latents_shape": [Bucket.parse(name).num_frames, 2, 2, 2], "clips": count}
            for name, count in buckets.items()
        },
        shards=shards,
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


def rich(folder, **more):
    """Every kind of video: good, copied, short, refused, all dropped, late, gone and changed."""
    good = [
        video(
            f"good/{n:02d}.mp4", [(SMALL, 1.0 + n, 60.0 + 10 * n), (LONG, 2.5 + n, 65.0 + 10 * n)]
        )
        for n in range(8)
    ]
    records = [
        *good,
        video(EVIL, [(TALL, 0.31, 3.0)], size=(360, 640), fps=29.97),
        video("x" * 300 + ".mp4", [(SMALL, 0.01, 120.0), (SMALL, 0.05, 2.0)], size=(1920, 1080)),
        video("partly.mp4", [(SMALL, 0.5, 140.0), (SMALL, 0.02, 141.0), (LONG, 30.0, 255.0)]),
        video("slow.mp4", [(SMALL, 0.6, 5.0, [0, 0, 0, 1])], fps=2.4),
        video("many.mp4", [(SMALL, 4.0 + n / 10, 150.0 + n) for n in range(9)]),
        video("changed.mp4", [(SMALL, 5.0, 33.0)], content="new", version="2"),
        video("short.mp4", [], seconds=0.3),
        dataclasses.replace(good[3], name="good/copy of 03.mp4"),
        broken("broken <i>.mp4", message="cannot decode\nframe 3"),
        *(broken(f"noise {n}.mp4", stage="probe", exception="NotAVideo") for n in range(7)),
    ]
    before = [
        *good[:2],
        video("gone.mp4", [(SMALL, 0.9, 90.0), (SMALL, 1.1, 91.0), (LONG, 1.2, 92.0)]),
        video("changed.mp4", [(SMALL, 5.5, 34.0)], content="old"),
    ]
    return data_set(
        folder,
        records,
        before=before,
        listed=[refusal("../secret.mp4", stage="list", exception="OutsideRoot")],
        late=[("good/05.mp4", SMALL), ("good/06.mp4", SMALL), ("good/06.mp4", LONG)],
        settings=dict(
            {"select": {"min_motion": 0.3, "max_motion": 25, "max_clips_per_video": 6}}, **more
        ),
    )


def write(made):
    dataset_report.write(made.store, made.config, made.manifest, made.source, made.report)
    raw = json.loads(made.store.read(dataset_report.DATA_NAME))
    return raw, made.store.read(dataset_report.PAGE_NAME).decode()
