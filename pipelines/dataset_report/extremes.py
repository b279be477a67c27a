"""The clips at both ends of a scale: least and most moving, darkest, brightest.

Scores come from the selection, so of a data set of any size only the few shards are opened that
hold a clip which is shown.
"""

import base64
import heapq
import io
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cil.errors import DataError
from pipelines.records import Manifest, ShardSidecar
from pipelines.selection.candidates import CandidateClip
from pipelines.shard_reader import ShardReader
from pipelines.shards import read_sidecar
from pipelines.source_state import SourceState, planned
from pipelines.store import Store

__all__ = ["ExtremeClip", "Gallery", "galleries", "thumbnails"]

_MOST = 4
_SPARE = 12
"""More videos that are looked at, for those that were lost while they were encoded."""
_LARGEST_SIDE = 320
_WEBP_QUALITY = 80

_Order = Callable[[tuple[str, CandidateClip]], tuple[float, str, float]]
_Place = tuple[str, str, int]
"""Shard, key, and number among the clips of the bucket."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtremeClip:
    """A clip at the end of a scale, and where it is."""

    name: str
    """Name of its video; comes from outside."""
    content_sha256: str
    """Hash of its video."""
    start_s: float
    """Start in seconds from the start of the video."""
    value: float
    """Its score."""
    bucket: str
    shard: str
    key: str
    """Sample key in the shard."""
    index: int
    """Number among the clips of the bucket, as `ShardReader` counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """The clips at one end of a scale, the outermost first, at most one of a video."""

    title: str
    score: str
    """Name of the score."""
    unit: str
    clips: list[ExtremeClip]


def galleries(store: Store, manifest: Manifest, source: SourceState) -> list[Gallery]:
    """Find the extreme clips.

    Args:
        store: the data set.
        manifest: of the data set.
        source: its videos and the choice of clips.
    """
    videos = {sha: clips for sha, clips in source.selection.kept.items() if clips}
    ends: list[tuple[str, str, str, int]] = [
        ("Least motion", "motion", "px/frame", 1),
        ("Most motion", "motion", "px/frame", -1),
        ("Darkest", "luma_mean", "of 255", 1),
        ("Brightest", "luma_mean", "of 255", -1),
    ]
    ranked = [_outermost(videos, _order(score, sign)) for _, score, _, sign in ends]
    places = _places(store, manifest, (pair for pairs in ranked for pair in pairs))
    most = max(1, min(_MOST, len(videos) // 2))  # the ends of a small data set do not meet
    found = []
    for (title, score, unit, _), pairs in zip(ends, ranked, strict=True):
        there = [(sha, clip) for sha, clip in pairs if (sha, clip.start_s) in places]
        shown = [
            _extreme(source, sha, clip, score, places[sha, clip.start_s])
            for sha, clip in there[:most]
        ]
        found.append(Gallery(title=title, score=score, unit=unit, clips=shown))
    return found


def _outermost(
    videos: Mapping[str, Sequence[CandidateClip]], order: _Order
) -> list[tuple[str, CandidateClip]]:
    """Return the first clips in an order, one of a video."""
    first = (min(((sha, clip) for clip in clips), key=order) for sha, clips in videos.items())
    return heapq.nsmallest(_MOST + _SPARE, first, key=order)


def _order(score: str, sign: int) -> _Order:
    def key(pair: tuple[str, CandidateClip]) -> tuple[float, str, float]:
        sha, clip = pair
        return sign * getattr(clip.scores, score), sha, clip.start_s

    return key


def _extreme(
    source: SourceState, sha: str, clip: CandidateClip, score: str, place: _Place
) -> ExtremeClip:
    shard, key, index = place
    return ExtremeClip(
        name=source.videos[sha].name,
        content_sha256=sha,
        start_s=clip.start_s,
        value=getattr(clip.scores, score),
        bucket=clip.bucket,
        shard=shard,
        key=key,
        index=index,
    )


def _places(
    store: Store, manifest: Manifest, clips: Iterable[tuple[str, CandidateClip]]
) -> dict[tuple[str, float], _Place]:
    """Find out where clips are; one that was lost while it was encoded is nowhere.

    Clips stand in the shard in the order of the plan, and of a video all or none.
    """
    wanted = {(sha, clip.start_s) for sha, clip in clips}
    videos = {sha for sha, _ in wanted}
    firsts = _first_numbers(manifest)
    found: dict[tuple[str, float], _Place] = {}
    for spec in planned(store):
        if spec.name not in firsts or not any(item["sha256"] in videos for item in spec.inputs):
            continue
        sidecar: ShardSidecar = read_sidecar(store, spec.name)
        number = 0
        for item, done in zip(spec.inputs, sidecar.inputs, strict=True):
            for inside, clip in enumerate(item["clips"] if done["clips"] else ()):
                clip_id = (item["sha256"], clip["start_s"])
                if clip_id in wanted:
                    place = number + inside
                    found[clip_id] = spec.name, sidecar.keys[place], firsts[spec.name] + place
            number += done["clips"]
    return found


def _first_numbers(manifest: Manifest) -> dict[str, int]:
    """Return the number of each shard's first clip among those of its bucket."""
    totals: dict[str, int] = {}
    firsts = {}
    for entry in manifest.entries():
        firsts[entry.name] = totals.get(entry.bucket, 0)
        totals[entry.bucket] = firsts[entry.name] + entry.count
    return firsts


def thumbnails(store: Store, shown: Sequence[Gallery]) -> dict[str, str]:
    """Read the conditioning frames of the clips that are shown.

    Args:
        store: the data set.
        shown: extreme clips.

    Returns:
        Data URIs of small WebP pictures by the key of the clip.

    Raises:
        DataError: a shard is missing or damaged, or holds another clip there.
    """
    clips = {clip.key: clip for gallery in shown for clip in gallery.clips}
    pictures = {}
    with tempfile.TemporaryDirectory() as cache:
        readers: dict[str, ShardReader] = {}
        for key, clip in sorted(clips.items()):
            if clip.bucket not in readers:
                readers[clip.bucket] = ShardReader(store, bucket=clip.bucket, cache=Path(cache))
            reader = readers[clip.bucket]
            record = reader.clip(clip.index).record
            found = (record.key, record.content_sha256, record.start_s)
            if found != (key, clip.content_sha256, clip.start_s):
                raise DataError(
                    f"clip {clip.index} of {clip.bucket} in {store.url()} should be {key}, "
                    f"found {record.key}; run encode again with a new output"
                )
            pictures[key] = _data_uri(reader.thumbnail(clip.index))
    return pictures


def _data_uri(webp: bytes) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(webp), formats=["WEBP"]) as picture:
        if max(picture.size) > _LARGEST_SIDE:
            picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
            buffer = io.BytesIO()
            picture.save(buffer, format="WEBP", quality=_WEBP_QUALITY)
            webp = buffer.getvalue()
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
