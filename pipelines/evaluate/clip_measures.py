"""The measures of one video: frames and a conditioning image in, a row of numbers out.

A video that is not finite gets a row without numbers, and every oddity a word in ``flags``, so that
nothing is averaged in unseen; docs/evaluation.md defines each number.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from cil.errors import DataError
from cil.metrics.motion import motion_score

__all__ = ["BLACK", "NOT_FINITE", "UNUSABLE", "alignment_row", "motion_row", "unmeasured_row"]

Frames = npt.NDArray[np.uint8]

NOT_FINITE, BLACK = "not_finite", "black"
UNUSABLE = (NOT_FINITE, BLACK)
"""Flags of videos that are counted but in no mean."""
_MOTION = (
    "motion",
    "motion_consistent",
    "consistent_share",
    "motion_median",
    "first_transition",
    "jump",
    "moves",
    "luminance",
)
_ALIGNMENT = ("ssim", "histogram", "alignment_mse")


def motion_row(frames: Frames, *, fps: float) -> dict[str, Any]:
    """Measure the motion and the light of a video.

    Args:
        frames: (F, H, W, 3) uint8 RGB, F >= 2.
        fps: frames per second, in Hz.

    Raises:
        DataError: other frames.
    """
    from cil.metrics.motion_judgement import dynamic_degree, luminance, motion_flags

    if frames.ndim != 4 or len(frames) < 2:
        raise DataError(f"a video must be (F, H, W, 3) with F >= 2, got {frames.shape}")
    score = motion_score(frames)
    return {
        "motion": score.value,
        "motion_consistent": score.consistent,
        "consistent_share": score.consistent_share,
        "motion_median": score.median,
        "first_transition": score.first_transition,
        "jump": score.jump,
        "moves": bool(dynamic_degree(frames, fps=fps, score=score).moves),
        "luminance": luminance(frames),
        "flags": " ".join(motion_flags(score, frames)),
    }


def alignment_row(image: Frames, frames: Frames) -> dict[str, Any]:
    """Compare a video with its conditioning image, of the same size.

    Returns:
        ``ssim`` and ``histogram``, means over frames, and ``alignment_mse`` of frame 0 on a scale
        of 0 to 1.
    """
    from cil.metrics.alignment import alignment_mse, histogram_overlap, ssim

    return {
        "ssim": float(np.mean(ssim(image, frames))),
        "histogram": float(np.mean(histogram_overlap(image, frames))),
        "alignment_mse": float(alignment_mse(image, frames[:1])[0]),
    }


def unmeasured_row() -> dict[str, Any]:
    """Return the row of a video that is not finite: no numbers, and why."""
    return {**dict.fromkeys((*_MOTION, *_ALIGNMENT)), "flags": NOT_FINITE}
