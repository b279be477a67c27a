"""The two numbers that Stable Video Diffusion is told about a clip: fps_id and motion_bucket_id.

SVD was trained on the frame rate less one, and on a number from 0 to 255 made from optical flow.
Its authors published neither the flow scores nor the map (arXiv 2311.15127 says only that clips
are described by their motion); 127 is what their samples use. Ours is another map that is monotone
and puts an ordinary clip at 127: the ids are consistent within data sets of this project, and only
roughly comparable to what the released weights have seen.
"""

from cil.errors import DataError

__all__ = ["ORDINARY_MOTION", "fps_id", "motion_bucket_id"]

ORDINARY_MOTION = 2.0
"""Motion in px/frame, at a short side of 256 pixels, that gets the id 127. The median of
51 clips of eight test videos at 8 Hz is 1.6, their quartiles are 1 and 5."""
_LARGEST = 254
"""Twice 127; the id of infinite motion."""


def fps_id(fps: float) -> float:
    """Return what SVD is told of a clip's frame rate: fps - 1, at least 0.

    Args:
        fps: frames per second of the clip, in Hz.

    Raises:
        DataError: the rate is not above 0 and finite.
    """
    if not 0 < fps < float("inf"):
        raise DataError(f"frames per second must be finite and above 0, got {fps}")
    return max(fps - 1.0, 0.0)


def motion_bucket_id(motion: float) -> int:
    """Return what SVD is told of a clip's motion, 0 to 254.

    254 m / (m + 2), rounded: 0 for a still clip, 127 at 2 px/frame, ever slower above.

    Args:
        motion: motion score of the clip in px/frame at a short side of 256 pixels.

    Raises:
        DataError: the score is not finite and at least 0.
    """
    if not 0 <= motion < float("inf"):
        raise DataError(f"a motion score must be finite and at least 0, got {motion}")
    return round(_LARGEST * motion / (motion + ORDINARY_MOTION))
