"""The source as it is: videos scanned, copies dropped, clips chosen, and what was refused."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cil.errors import StageError
from pipelines.config import RunConfig
from pipelines.dataset_identity import PLAN_NAME, read_plan
from pipelines.planning import changes, without_copies
from pipelines.records import QuarantineRecord, ShardSpec, VideoRecord
from pipelines.selection.candidates import VideoScan
from pipelines.selection.select import Selection, select
from pipelines.sources import Listing, SourceOptions, SourceVideo
from pipelines.store import Store

__all__ = [
    "DROPPED_NAME",
    "QUARANTINE_NAME",
    "SourceState",
    "choose",
    "places",
    "planned",
    "refuse_bad_source",
    "save_refusals",
    "source_options",
    "understand",
]

QUARANTINE_NAME = "quarantine.jsonl"
DROPPED_NAME = "dropped.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceState:
    """The videos as they are now, scanned, and the choice of their clips."""

    listing: Listing
    records: list[VideoRecord]
    videos: dict[str, VideoRecord]
    """By the hash of their content; one of each."""
    refused: list[QuarantineRecord]
    selection: Selection


def source_options(config: RunConfig) -> SourceOptions:
    """Return how a table of videos is read."""
    data = config.data
    return SourceOptions(
        video_root=data.video_root,
        path_column=data.path_column,
        caption_column=data.caption_column,
    )


def choose(
    config: RunConfig, videos: Mapping[str, VideoRecord], settled: Sequence[ShardSpec] = ()
) -> Selection:
    """Choose clips of scanned videos; what is planned already stays.

    Args:
        config: thresholds and sampling.
        videos: scanned videos by the hash of their content.
        settled: shards that are planned.
    """
    there: dict[str, list[float]] = {}
    for spec in settled:
        for item in spec.inputs:
            starts = [clip["start_s"] for clip in item["clips"]]
            there.setdefault(item["sha256"], []).extend(starts)
    scans = {sha: VideoScan.from_json(v.scan) for sha, v in videos.items() if v.scan is not None}
    return select(scans, config.select, settled=there)


def understand(
    config: RunConfig, store: Store, listing: Listing, records: list[VideoRecord]
) -> SourceState:
    """Drop copies, choose clips, and collect what was refused.

    Args:
        config: thresholds and sampling.
        store: the data set, which may hold a plan.
        listing: the source as it is now.
        records: its videos, scanned.
    """
    specs = planned(store)
    videos, copies = without_copies(records, specs)
    short = {sha256: reason for sha256, video in videos.items() if (reason := _no_clips(video))}
    return SourceState(
        listing=listing,
        records=records,
        videos={sha256: video for sha256, video in videos.items() if sha256 not in short},
        refused=[
            *listing.refused,
            *_refusals(records),
            *copies,
            *(_too_short(videos[sha256], reason) for sha256, reason in short.items()),
        ],
        selection=choose(config, videos, specs),
    )


def _no_clips(video: VideoRecord) -> str | None:
    assert video.scan is not None
    reason: str | None = video.scan["reason"]
    return reason


def _too_short(video: VideoRecord, reason: str) -> QuarantineRecord:
    return QuarantineRecord(
        path=video.name,
        sha256=video.sha256,
        stage="select",
        decoder=None,
        exception="TooShort",
        message=reason,
        attempts=1,
    )


def places(source: SourceState) -> dict[str, SourceVideo]:
    """Return where the videos are, by the hash of their content."""
    by_name = {video.name: video for video in source.listing.videos}
    return {sha256: by_name[video.name] for sha256, video in source.videos.items()}


def planned(store: Store) -> list[ShardSpec]:
    """Return the shards of the plan; none if there is no plan yet.

    Raises:
        DataError: the plan is damaged.
    """
    if not store.exists(PLAN_NAME):
        return []
    return [ShardSpec.from_json(item) for item in read_plan(store)["shards"]]


def save_refusals(store: Store, refused: Sequence[QuarantineRecord], selection: Selection) -> None:
    """Write one line per refused video and one per dropped clip, in a fixed order."""
    ordered = sorted(refused, key=lambda record: (record.path, record.stage, record.message))
    lines = [json.dumps(record.to_json(), sort_keys=True) + "\n" for record in ordered]
    store.write(QUARANTINE_NAME, "".join(lines).encode())
    lines = [json.dumps(clip.to_json(), sort_keys=True) + "\n" for clip in selection.dropped]
    store.write(DROPPED_NAME, "".join(lines).encode())


def refuse_bad_source(config: RunConfig, store: Store, source: SourceState) -> None:
    """End the run where too much is broken, or where planned videos are gone and may not be."""
    broken = [record for record in source.records if record.refused is not None]
    unreadable = [record for record in source.listing.refused if record.exception != "Duplicate"]
    count, total = len(broken) + len(unreadable), len(source.records) + len(unreadable)
    if count > config.encode.max_bad_fraction * total:
        raise StageError(
            f"{count} of {total} videos are broken, more than encode.max_bad_fraction = "
            f"{config.encode.max_bad_fraction:g} allows:\n"
            + _by_reason([*unreadable, *_refusals(broken)])
            + f"\nevery reason is in {store.url(QUARANTINE_NAME)}"
        )
    gone, changed, retold = changes(planned(store), source.records)
    if config.encode.source_changes == "refuse" and (gone or changed or retold):
        raise StageError(
            f"the source no longer has {_named(gone)}, holds another content for "
            f"{_named(changed)} and another caption for {_named(retold)}, and "
            "encode.source_changes is refuse; restore them, or make a new data set"
        )


def _refusals(records: Sequence[VideoRecord]) -> list[QuarantineRecord]:
    return [QuarantineRecord.from_json(r.refused) for r in records if r.refused is not None]


def _by_reason(refused: Sequence[QuarantineRecord]) -> str:
    counts: dict[str, list[str]] = {}
    for record in refused:
        counts.setdefault(f"{record.stage}, {record.exception}", []).append(record.path)
    ordered = sorted(counts.items(), key=lambda item: (-len(item[1]), item[0]))
    return "\n".join(f"  {len(paths)} {why}, for example {paths[0]}" for why, paths in ordered)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) + more) if names else "nothing"
