"""Which clips go to which shard. The plan only grows: shards that exist never change.

In: the records of all videos and the choice of clips. Out: shard specs, each with clips of one
bucket. Videos that arrive later get new shards.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.records import QuarantineRecord, ShardSpec, VideoRecord
from pipelines.selection.candidates import CandidateClip

__all__ = ["changes", "extend_plan", "planned_input", "without_copies"]


def without_copies(
    records: Sequence[VideoRecord], plan: Sequence[ShardSpec]
) -> tuple[dict[str, VideoRecord], list[QuarantineRecord]]:
    """Keep one video of each content.

    Args:
        records: the videos of the source.
        plan: what is planned already; a video that is there under its name is kept.

    Returns:
        The scanned videos by the hash of their content, in its order, and a refusal per copy.
    """
    planned = {(item["path"], item["sha256"]) for spec in plan for item in spec.inputs}
    order = sorted(records, key=lambda r: ((r.name, r.sha256) not in planned, r.name))
    videos: dict[str, VideoRecord] = {}
    copies = []
    for record in order:
        if record.scan is None or record.sha256 is None:
            continue
        if record.sha256 in videos:
            copies.append(_copy(record, videos[record.sha256].name))
        else:
            videos[record.sha256] = record
    return {sha256: videos[sha256] for sha256 in sorted(videos)}, copies


def _copy(record: VideoRecord, first: str) -> QuarantineRecord:
    return QuarantineRecord(
        path=record.name,
        sha256=record.sha256,
        stage="duplicate",
        decoder=None,
        exception="Duplicate",
        message=f"same content as {first}",
        attempts=1,
    )


def extend_plan(
    plan: Sequence[ShardSpec],
    videos: Mapping[str, VideoRecord],
    kept: Mapping[str, Sequence[CandidateClip]],
    *,
    videos_per_shard: int,
) -> list[ShardSpec]:
    """Add shards for the videos that no shard of the plan has.

    Videos come in the order of their content hashes, which spreads them over the shards evenly and
    independently of their names. All clips of a video that share a bucket are in one shard.

    Args:
        plan: the shards so far.
        videos: videos by the hash of their content.
        kept: chosen clips by the same hash.
        videos_per_shard: videos whose clips share a shard.

    Returns:
        The old specs unchanged, then the new ones, bucket after bucket.
    """
    planned = {item["sha256"] for spec in plan for item in spec.inputs}
    generation = max((spec.generation for spec in plan), default=-1) + 1
    by_bucket: dict[str, list[dict[str, Any]]] = {}
    for sha256 in sorted(set(kept) - planned):
        for bucket in sorted({clip.bucket for clip in kept[sha256]}):
            clips = [clip for clip in kept[sha256] if clip.bucket == bucket]
            by_bucket.setdefault(bucket, []).append(planned_input(videos[sha256], clips))
    specs = list(plan)
    for bucket, inputs in sorted(by_bucket.items()):
        for start in range(0, len(inputs), videos_per_shard):
            specs.append(
                ShardSpec(
                    name=f"shard-{len(specs):06d}",
                    generation=generation,
                    bucket=bucket,
                    inputs=inputs[start : start + videos_per_shard],
                )
            )
    return specs


def planned_input(video: VideoRecord, clips: Sequence[CandidateClip]) -> dict[str, Any]:
    """Return the input of a `ShardSpec` for a video and the chosen clips of one bucket."""
    assert video.scan is not None
    assert video.probe is not None
    return {
        "path": video.name,
        "sha256": video.sha256,
        "caption": video.caption,
        "source_fps": video.scan["source_fps"],
        "decoder": video.probe["decoder"],
        "clips": [clip.to_json() for clip in clips],
    }


def changes(
    plan: Sequence[ShardSpec], records: Sequence[VideoRecord]
) -> tuple[list[str], list[str], list[str]]:
    """Find what the data set has and the source has no longer.

    Returns:
        Names of planned videos whose content is gone, of those that hold another content now, and
        of those that have another caption now.
    """
    there = {record.sha256 for record in records}
    names = {record.name for record in records}
    lost = {item["path"] for spec in plan for item in spec.inputs if item["sha256"] not in there}
    captions = {record.sha256: record.caption for record in records}
    retold = {
        item["path"]
        for spec in plan
        for item in spec.inputs
        if item["sha256"] in there and captions[item["sha256"]] != item["caption"]
    }
    return sorted(lost - names), sorted(lost & names), sorted(retold)
