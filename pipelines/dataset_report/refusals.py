"""What was left out and why: refused videos by stage and reason, dropped clips by setting."""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.records import QuarantineRecord, VideoRecord
from pipelines.selection.select import DroppedClip

__all__ = [
    "ClipExample",
    "DroppedGroup",
    "RefusedGroup",
    "RefusedVideo",
    "dropped_groups",
    "refused_groups",
]

_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedVideo:
    """An example of a refused video."""

    name: str
    """Name of the video; comes from outside."""
    message: str
    """What was wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedGroup:
    """Videos that were refused for one reason."""

    stage: str
    """Where: list, read, duplicate, probe, scan, decode or select."""
    reason: str
    """Name of the exception."""
    count: int
    """Lines of the quarantine."""
    examples: list[RefusedVideo]
    """The first ones by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipExample:
    """An example of a dropped clip."""

    name: str
    """Name of its video; comes from outside."""
    start_s: float
    """Start in seconds from the start of the video."""
    value: float | None
    """What was measured, in the unit of the setting."""
    repeats: str | None
    """The clip that it repeats: name of the video @ start in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DroppedGroup:
    """Clips that were dropped by one setting."""

    reason: str
    """Name of the setting, or `settled`."""
    count: int
    """Clips."""
    threshold: float | None
    """What the setting allows."""
    least: float | None
    """Least measured value."""
    most: float | None
    """Largest measured value."""
    examples: list[ClipExample]
    """Those nearest to the threshold, at most one of a video."""


def refused_groups(refused: Iterable[QuarantineRecord]) -> list[RefusedGroup]:
    """Group refused videos, the most frequent reason first."""
    groups: dict[tuple[str, str], list[QuarantineRecord]] = {}
    for record in refused:
        groups.setdefault((record.stage, record.exception), []).append(record)
    found = []
    for (stage, reason), records in groups.items():
        first = heapq.nsmallest(_EXAMPLES, records, key=lambda item: (item.path, item.message))
        examples = [RefusedVideo(name=item.path, message=item.message) for item in first]
        group = RefusedGroup(stage=stage, reason=reason, count=len(records), examples=examples)
        found.append(group)
    return sorted(found, key=lambda group: (-group.count, group.stage, group.reason))


def dropped_groups(
    dropped: Iterable[DroppedClip], videos: Mapping[str, VideoRecord]
) -> list[DroppedGroup]:
    """Group dropped clips, the most frequent reason first.

    Args:
        dropped: clips with their reasons.
        videos: videos by the hash of their content.
    """
    groups: dict[str, list[DroppedClip]] = {}
    for clip in dropped:
        groups.setdefault(clip.reason, []).append(clip)
    found = [_dropped_group(reason, clips, videos) for reason, clips in groups.items()]
    return sorted(found, key=lambda group: (-group.count, group.reason))


def _dropped_group(
    reason: str, clips: Sequence[DroppedClip], videos: Mapping[str, VideoRecord]
) -> DroppedGroup:
    values = [clip.value for clip in clips if clip.value is not None]
    nearest: dict[str, DroppedClip] = {}
    for clip in clips:
        known = nearest.setdefault(clip.content_sha256, clip)
        if _order(clip) < _order(known):
            nearest[clip.content_sha256] = clip
    examples = [
        ClipExample(
            name=videos[clip.content_sha256].name,
            start_s=clip.start_s,
            value=clip.value,
            repeats=_repeated(clip.repeats, videos),
        )
        for clip in heapq.nsmallest(_EXAMPLES, nearest.values(), key=_order)
    ]
    return DroppedGroup(
        reason=reason,
        count=len(clips),
        threshold=next((clip.threshold for clip in clips if clip.threshold is not None), None),
        least=min(values, default=None),
        most=max(values, default=None),
        examples=examples,
    )


def _order(clip: DroppedClip) -> tuple[float, str, float]:
    distance = math.inf
    if clip.value is not None and clip.threshold is not None:
        distance = abs(clip.value - clip.threshold)
    return distance, clip.content_sha256, clip.start_s


def _repeated(clip: str | None, videos: Mapping[str, VideoRecord]) -> str | None:
    """Put the name of the video in place of its hash."""
    if clip is None:
        return None
    sha256, _, start_s = clip.partition("@")
    return f"{videos[sha256].name} @ {start_s} s" if sha256 in videos else clip
