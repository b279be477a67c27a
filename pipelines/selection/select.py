"""Which candidate clips of all videos become part of the data set, and why the others do not.

In: the scans of all videos and the settings. Out: a `Selection`. Nothing is read or written, and
the answer depends on the arguments alone, not on the order of the mapping.

For each video by itself: rules on single clips, then repetitions within the video, then at most so
many clips. Last, over all videos: clips that repeat one of another video; the video with the
smaller content hash keeps its clip.

A data set grows by videos, and what is in it must stay. So videos that were selected from before
are *settled*: they keep exactly the clips that they have, and those come before all others when
repetitions are looked for. A new video can lose clips to a settled one, never the reverse.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cil.errors import DataError
from pipelines.records import _Record
from pipelines.selection.duplicates import find_duplicates, hamming
from pipelines.selection.rules import first_broken_rule

if TYPE_CHECKING:
    from pipelines.selection.candidates import CandidateClip, VideoScan
    from pipelines.selection.config import SelectionConfig

__all__ = ["DroppedClip", "Selection", "select"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DroppedClip(_Record):
    """A candidate that was left out, or would have been."""

    content_sha256: str
    """Hash of its video."""
    bucket: str
    """Name of its bucket."""
    start_s: float
    """Start in seconds from the start of the video; with the hash, the clip's identity."""
    end_s: float
    """End in seconds."""
    reason: str
    """Name of the setting that dropped it, or `settled`: its video was encoded without it."""
    value: float | None
    """What was measured, in the unit of the setting; for max_clips_per_video, clips to choose."""
    threshold: float | None
    """What the setting allows."""
    repeats: str | None = None
    """The kept clip that it repeats, as content hash @ start in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which clips are kept."""

    kept: dict[str, list["CandidateClip"]] = field(default_factory=dict)
    """Content hash of every video that was scanned, sorted -> its kept clips in order of time."""
    dropped: list[DroppedClip] = field(default_factory=list)
    """All other candidates, by content hash and time."""
    flagged: list[DroppedClip] = field(default_factory=list)
    """Clips that are kept only because of score_only, with what would have dropped them."""

    @property
    def num_kept(self) -> int:
        """Kept clips of all videos."""
        return sum(len(clips) for clips in self.kept.values())


def select(
    scans: Mapping[str, "VideoScan"],
    config: "SelectionConfig",
    *,
    settled: Mapping[str, Collection[float]] | None = None,
) -> Selection:
    """Choose clips.

    Args:
        scans: content hash -> scan, of all videos of the data set, old and new.
        config: the rules.
        settled: content hash -> ``start_s`` of its clips, of each video that an earlier selection
            with the same settings was made from; empty where that kept no clip.

    Returns:
        Kept and dropped clips. With ``score_only`` all clips of new videos are kept.

    Raises:
        DataError: a settled clip is not among the candidates of its video.
    """
    settled = settled or {}
    found: dict[tuple[str, float], DroppedClip] = {}
    chosen: dict[str, list[CandidateClip]] = {}
    for sha in sorted(scans):
        keep, drop = _within_video(sha, scans[sha], config)
        found.update({(sha, item.start_s): item for item in drop})
        chosen[sha] = keep
    before = {
        sha: _settled_clips(sha, scans[sha], settled[sha]) for sha in chosen if sha in settled
    }
    if config.max_duplicate_distance is not None:
        new = {sha: clips for sha, clips in chosen.items() if sha not in settled}
        repeats = _across_videos(before, new, config.max_duplicate_distance)
        found.update({(item.content_sha256, item.start_s): item for item in repeats})
    selection = Selection()
    for sha in chosen:
        keeps = {clip.start_s for clip in before.get(sha, ())}
        selection.kept[sha] = []
        for clip in scans[sha].clips:
            verdict = found.get((sha, clip.start_s))
            if sha in settled:
                stays = clip.start_s in keeps
                verdict = verdict or _dropped(sha, clip, "settled")
            else:
                stays = config.score_only or verdict is None
                if stays and verdict is not None:
                    selection.flagged.append(verdict)
            if stays:
                selection.kept[sha].append(clip)
            elif verdict is not None:
                selection.dropped.append(verdict)
    return selection


def _within_video(
    sha: str, scan: "VideoScan", config: "SelectionConfig"
) -> tuple[list["CandidateClip"], list[DroppedClip]]:
    """Apply all that depends on this video alone."""
    keep: list[CandidateClip] = []
    drop: list[DroppedClip] = []
    for clip in scan.clips:
        broken = first_broken_rule(scan, clip, config)
        if broken is None:
            keep.append(clip)
        else:
            drop.append(_dropped(sha, clip, *broken))
    if config.max_duplicate_distance is not None and len(keep) > 1:
        pairs = [(sha, clip) for clip in keep]
        repeated = list(_repetitions(pairs, config.max_duplicate_distance, num_settled=0))
        drop += repeated
        gone = {item.start_s for item in repeated}
        keep = [clip for clip in keep if clip.start_s not in gone]
    most = config.max_clips_per_video
    if most is not None and len(keep) > most:
        places = _sample(sha, keep, most, config)
        rest = [clip for place, clip in enumerate(keep) if place not in places]
        drop += [_dropped(sha, clip, "max_clips_per_video", len(keep), most) for clip in rest]
        keep = [clip for place, clip in enumerate(keep) if place in places]
    return keep, drop


def _sample(
    sha: str, clips: Sequence["CandidateClip"], most: int, config: "SelectionConfig"
) -> set[int]:
    """Return the places of ``most`` of the clips."""
    if config.clip_sampling == "first":
        return set(range(most))
    if config.clip_sampling == "spread":  # the middles of ``most`` equal parts
        return {(2 * part + 1) * len(clips) // (2 * most) for part in range(most)}

    def lot(place: int) -> bytes:
        text = f"{config.sampling_seed}:{sha}:{clips[place].start_s!r}"
        return hashlib.sha256(text.encode()).digest()

    return set(sorted(range(len(clips)), key=lot)[:most])


def _settled_clips(sha: str, scan: "VideoScan", starts: Collection[float]) -> list["CandidateClip"]:
    wanted = set(starts)
    clips = [clip for clip in scan.clips if clip.start_s in wanted]
    if missing := sorted(wanted - {clip.start_s for clip in clips}):
        raise DataError(
            f"the data set has a clip of video {sha} at {missing[0]} s, and a scan finds none "
            "there; the video was scanned with other settings than the data set was made with"
        )
    return clips


def _across_videos(
    before: Mapping[str, Sequence["CandidateClip"]],
    new: Mapping[str, Sequence["CandidateClip"]],
    distance: int,
) -> Iterator[DroppedClip]:
    old = [(sha, clip) for sha, clips in before.items() for clip in clips]
    pairs = old + [(sha, clip) for sha, clips in new.items() for clip in clips]
    return _repetitions(pairs, distance, num_settled=len(old))


def _repetitions(
    pairs: Sequence[tuple[str, "CandidateClip"]], distance: int, *, num_settled: int
) -> Iterator[DroppedClip]:
    """Yield those of the clips, given in order of preference, that repeat a kept one."""
    import numpy as np

    hashes = np.array([int(clip.scores.perceptual_hash, 16) for _, clip in pairs], np.uint64)
    repeats = find_duplicates(hashes, distance, num_settled=num_settled)
    for place in np.flatnonzero(repeats >= 0).tolist():
        (sha, clip), (other_sha, other) = pairs[place], pairs[repeats[place]]
        bits = hamming(clip.scores.perceptual_hash, other.scores.perceptual_hash)
        name = f"{other_sha}@{other.start_s:g}"
        yield _dropped(sha, clip, "max_duplicate_distance", bits, distance, repeats=name)


def _dropped(
    sha: str,
    clip: "CandidateClip",
    reason: str,
    value: float | None = None,
    threshold: float | None = None,
    *,
    repeats: str | None = None,
) -> DroppedClip:
    return DroppedClip(
        content_sha256=sha,
        bucket=clip.bucket,
        start_s=clip.start_s,
        end_s=clip.end_s,
        reason=reason,
        value=value,
        threshold=threshold,
        repeats=repeats,
    )
