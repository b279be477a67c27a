"""What is likely wrong with a data set as a whole, from the scans of its videos."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.selection.candidates import VideoScan

__all__ = ["dataset_warnings"]

_STILL_PX = 0.1
"""What a still picture with camera noise has, in px/frame at a short side of 256 pixels."""
_STILL_SHARE = 0.2
_BLACK = 16.0
"""Brightness that counts as black, 0 to 255."""
_BLACK_SHARE = 0.1
_REPEATED_SHARE = 0.25
"""Frames of a clip that repeat the one before, from which the clip counts as slower than it is."""
_SLOW_SHARE = 0.2


def dataset_warnings(scans: Iterable["VideoScan"]) -> list[str]:
    """Return one line for each thing that speaks against training on these videos as they are.

    Args:
        scans: the scans of all videos; those without clips are left out.
    """
    clips = [clip for scan in scans for clip in scan.clips]
    if not clips:
        return []
    lines = []
    pictures = _share(len(set(clip.frames)) == 1 for clip in clips)
    still = _share(clip.scores.motion < _STILL_PX for clip in clips)
    dark = _share(clip.scores.luma_mean < _BLACK for clip in clips)
    slow = _share(
        1 < len(set(clip.frames)) <= (1 - _REPEATED_SHARE) * len(clip.frames) for clip in clips
    )
    if pictures == 1:
        lines.append(
            "every clip shows one picture: these are images and no videos; such data teaches a "
            "still video"
        )
    elif still >= _STILL_SHARE:
        lines.append(
            f"{still:.0%} of the clips move less than {_STILL_PX:g} px/frame: such data teaches a "
            f"still video; min_motion: {_STILL_PX:g} leaves them out"
        )
    if dark >= _BLACK_SHARE:
        lines.append(
            f"{dark:.0%} of the clips are nearly black (mean brightness under {_BLACK:g} of 255): "
            f"min_luma: {_BLACK:g} leaves them out"
        )
    if slow >= _SLOW_SHARE:
        lines.append(
            f"in {slow:.0%} of the clips at least {_REPEATED_SHARE:.0%} of the frames repeat the "
            "one before, since their videos are slower than the clips: such data teaches jerky "
            "motion; lower fps, or leave slow videos out with min_source_fps"
        )
    return lines


def _share(found: Iterable[bool]) -> float:
    values = list(found)
    return sum(values) / len(values)
