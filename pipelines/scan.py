"""First pass over the videos, on Ray Data: which videos there are, and which clips they hold.

    listing -> one Ray row per group of videos -> task: hash, probe, decode in order, score
            -> inventory

Every video is decoded once, strictly, in a process with limits. What is found is kept in the data
set (`inventory.jsonl`), so only new and changed videos are scanned again. Nothing is chosen here.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cil.errors import CilError
from pipelines.config import RunConfig, clip_buckets, content_hash
from pipelines.decode.config import DecodeConfig
from pipelines.decode.errors import DecodeError, quarantine_record
from pipelines.decode.process import STOPPED, DecoderProcess
from pipelines.progress import stage_progress
from pipelines.ray_map import map_rows
from pipelines.records import VideoRecord
from pipelines.selection.scan import ScanSettings
from pipelines.sources import SourceVideo, local_file, scratch_folder
from pipelines.store import Store

__all__ = [
    "INVENTORY_NAME",
    "decoder_of",
    "is_unchanged",
    "known_records",
    "save_inventory",
    "scan_group",
    "scan_one",
    "scan_settings",
    "scan_videos",
]

INVENTORY_NAME = "inventory.jsonl"
_PARTS = "scan"
_GROUPS_PER_WORKER = 32
_LARGEST_GROUP = 64
_SHA256 = "records_sha256"
_SCAN_VERSION = 1
"""Raised when the scan of the same video changes."""


def scan_settings(config: RunConfig) -> ScanSettings:
    """Return what decides the candidate clips of a video."""
    return ScanSettings(
        buckets=clip_buckets(config.data),
        fps=config.data.fps,
        clip_stride=config.data.clip_stride,
        shot_threshold=config.select.shot_threshold,
    )


def known_records(store: Store, config: RunConfig) -> dict[str, VideoRecord]:
    """Return what earlier scans with these settings found, by the video's name.

    Includes the parts that a scan which was stopped has left.
    """
    known: dict[str, VideoRecord] = {}
    parts = sorted(name for name in store.list(_PARTS) if name.endswith(".jsonl"))
    for name in [INVENTORY_NAME, *parts]:  # parts are newer
        if store.exists(name):
            known |= {record.name: record for record in _read(store, name, config)}
    return known


def _read(store: Store, name: str, config: RunConfig) -> Iterator[VideoRecord]:
    """Yield the records of a file; one of other settings, or a damaged one, holds none."""
    try:
        header, _, lines = store.read(name).partition(b"\n")
        there, found = json.loads(header), hashlib.sha256(lines).hexdigest()
        limits = there.pop("limits", None)
        undamaged = there.pop(_SHA256, found) == found  # older ones have none
        if not undamaged or there != _header(config):
            return
        records = [VideoRecord.from_json(json.loads(line)) for line in lines.splitlines()]
        if limits != _limits(config):
            records = [record for record in records if not _stopped_the_decoder(record)]
    except (CilError, OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return
    yield from records


def _stopped_the_decoder(record: VideoRecord) -> bool:
    """Tell whether a video may be readable with other limits."""
    return record.refused is not None and record.refused["exception"] in STOPPED


def _limits(config: RunConfig) -> str:
    return content_hash({**asdict(config.decode), "backend": None})


def _header(config: RunConfig) -> dict[str, Any]:
    settings = content_hash(scan_settings(config).to_json())
    return {"scan_version": _SCAN_VERSION, "settings": settings}


def _lines(config: RunConfig, records: Sequence[VideoRecord]) -> bytes:
    """Write records as lines; the first one says by which settings they were made."""
    limits = _limits(config) if any(map(_stopped_the_decoder, records)) else None
    lines = b"".join(_line(record.to_json()) for record in records)
    header = {**_header(config), "limits": limits, _SHA256: hashlib.sha256(lines).hexdigest()}
    return _line(header) + lines


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, sort_keys=True) + "\n").encode()


def save_inventory(store: Store, config: RunConfig, records: Iterable[VideoRecord]) -> None:
    """Write the inventory, sorted by name, and remove the parts that it was made of."""
    ordered = sorted(records, key=lambda record: record.name)
    store.write(INVENTORY_NAME, _lines(config, ordered))
    for name in store.list(_PARTS):
        store.remove(name)


def is_unchanged(video: SourceVideo, known: Mapping[str, VideoRecord]) -> bool:
    """Tell whether a video was scanned, and is still the same."""
    record = known.get(video.name)
    return (
        record is not None
        and record.version == video.version
        and (record.refused is None or record.sha256 is not None)
    )


def scan_videos(
    config: RunConfig,
    store: Store,
    videos: Sequence[SourceVideo],
    known: Mapping[str, VideoRecord],
) -> list[VideoRecord]:
    """Scan the videos that are not known; a Ray session must be there.

    Args:
        config: the run.
        store: where the data set is; parts of the result are kept there while it goes on.
        videos: all videos of the source.
        known: what is known of them, by name.

    Returns:
        A record for each video, in the order of ``videos``.

    Raises:
        StageError: Ray failed.
    """
    new = [video for video in videos if not is_unchanged(video, known)]
    found = {video.name: known[video.name] for video in videos if is_unchanged(video, known)}
    if new:
        found |= {record.name: record for record in _scan_new(config, store, new)}
    return [replace(found[video.name], caption=video.caption) for video in videos]


def _scan_new(
    config: RunConfig, store: Store, videos: Sequence[SourceVideo]
) -> Iterator[VideoRecord]:
    workers = config.encode.num_workers * config.encode.decoders_per_worker
    size = min(max(len(videos) // (workers * _GROUPS_PER_WORKER), 1), _LARGEST_GROUP)
    groups = [videos[start : start + size] for start in range(0, len(videos), size)]
    # 1:1, a group of videos becomes a few kilobytes of records. One CPU each: decoding and scoring
    # are single-threaded.
    results = map_rows(
        [{"videos": json.dumps([asdict(video) for video in group])} for group in groups],
        scan_group,
        settings={"decode": config.decode, "settings": scan_settings(config).to_json()},
        concurrency=workers,
        max_retries=config.encode.max_retries,
        doing="scanning",
    )
    done = refused = 0
    with stage_progress("encode: scan videos", len(videos)) as progress:
        for row in results:
            lines = str(row["records"]).splitlines()
            found = [VideoRecord.from_json(json.loads(line)) for line in lines]
            name = content_hash([[record.name, record.version] for record in found])[:32]
            store.write(f"{_PARTS}/{name}.jsonl", _lines(config, found))
            yield from found
            done += len(found)
            refused += sum(record.refused is not None for record in found)
            progress.update(done, f"{refused} refused" if refused else "")


def scan_group(
    batch: dict[str, npt.NDArray[Any]], *, decode: DecodeConfig, settings: dict[str, Any]
) -> dict[str, npt.NDArray[Any]]:
    """Scan some videos in a worker process, which keeps its decoder for the next ones.

    Args:
        batch: one row with the column ``videos``, a JSON list of `SourceVideo`.
        decode: limits of the decoder.
        settings: `ScanSettings` as JSON.

    Returns:
        One row with the column ``records``, a line of JSON per video.
    """
    (text,) = batch["videos"]
    videos = [SourceVideo(**raw) for raw in json.loads(str(text))]
    records = [scan_one(video, decoder_of(decode), settings) for video in videos]
    lines = "\n".join(json.dumps(record.to_json(), sort_keys=True) for record in records)
    return {"records": np.array([lines], dtype=object)}


def scan_one(video: SourceVideo, decoder: DecoderProcess, settings: dict[str, Any]) -> VideoRecord:
    """Scan a video; whatever is wrong with it stands in the record.

    Args:
        video: where it is.
        decoder: what decodes it.
        settings: `ScanSettings` as JSON.
    """
    record = VideoRecord(
        name=video.name,
        version=video.version,
        num_bytes=video.num_bytes,
        sha256=None,
        caption=video.caption,
        probe=None,
        scan=None,
        refused=None,
    )
    try:
        with scratch_folder() as scratch, local_file(video, scratch) as path:
            scanned = decoder.scan(path, settings)
    except DecodeError as error:
        refused = quarantine_record(video.name, error)
        return replace(record, sha256=error.sha256, refused=refused.to_json())
    except (CilError, OSError) as error:
        message = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        unreadable = DecodeError(
            message, stage="read", decoder=None, exception=type(error).__name__
        )
        return replace(record, refused=quarantine_record(video.name, unreadable).to_json())
    return replace(record, sha256=scanned.sha256, probe=scanned.probe, scan=scanned.scan)


@lru_cache(maxsize=1)
def decoder_of(config: DecodeConfig) -> DecoderProcess:
    """Return the decoder of this worker process."""
    return DecoderProcess(config)
