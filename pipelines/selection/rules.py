"""The rules that look at one clip alone: thresholds on its scores and on its video."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.selection.candidates import CandidateClip, VideoScan
    from pipelines.selection.config import SelectionConfig

__all__ = ["first_broken_rule"]


def first_broken_rule(
    scan: "VideoScan", clip: "CandidateClip", config: "SelectionConfig"
) -> tuple[str, float, float] | None:
    """Return (name of the setting, value, threshold) of the first rule a clip breaks, if any."""
    for name, value in _values(scan, clip):
        threshold = getattr(config, name)
        if threshold is None:
            continue
        if value < threshold if name.startswith("min_") else value > threshold:
            return name, float(value), float(threshold)
    return None


def _values(scan: "VideoScan", clip: "CandidateClip") -> Iterator[tuple[str, float]]:
    scores = clip.scores
    yield "min_height", scan.height
    yield "min_width", scan.width
    yield "min_source_fps", scan.source_fps
    yield "min_motion", scores.motion
    yield "max_motion", scores.motion
    yield "min_luma", scores.luma_mean
    yield "min_contrast", scores.contrast
    yield "max_jump", scores.jump
    yield "min_consistent_share", scores.consistent_share
