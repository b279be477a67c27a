"""Frames: (H, W, 3) uint8 RGB arrays, upright, with their number and time in the video."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Frame", "SourceFrame", "cover_and_crop"]

Frame = npt.NDArray[np.uint8]
"""(H, W, 3) uint8 RGB, turned as the file's rotation flag says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFrame:
    """One decoded frame and its place in the video."""

    number: int
    """Frames that are shown before this one."""
    time_s: float
    """Presentation time in seconds, as the container states it; a video need not begin at 0."""
    pixels: Frame


def cover_and_crop(frame: Frame, height: int, width: int) -> Frame:
    """Resize so that the frame covers (height, width), keeping its aspect, and crop the centre.

    Args:
        frame: (H, W, 3) uint8.
        height: rows of the result in pixels.
        width: columns of the result in pixels.

    Returns:
        (height, width, 3) uint8, contiguous.
    """
    import cv2

    rows, columns = frame.shape[:2]
    scale = max(height / rows, width / columns)
    size = (max(width, round(columns * scale)), max(height, round(rows * scale)))
    if size != (columns, rows):
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        frame = cv2.resize(np.ascontiguousarray(frame), size, interpolation=method)
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    return np.ascontiguousarray(frame[top : top + height, left : left + width])
