"""Frames: (H, W, 3) uint8 RGB arrays, upright, with their number and time in the video."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["Frame", "SourceFrame", "cover_and_crop"]

Frame = npt.NDArray[np.uint8]
"""(H, W, 3) uint8 RGB, turned as the file's rotation flag says."""


class SourceFrame:
    """One decoded frame and its place in the video; its pixels are made when they are asked for.

    Most frames of a video are decoded only because others refer to them, and turning a frame into
    RGB can take longer than decoding it.

    Attributes:
        number: frames that are shown before this one.
        time_s: presentation time in seconds, as the container states it; a video need not begin
            at 0.
    """

    __slots__ = ("_pixels", "number", "time_s")

    def __init__(self, *, number: int, time_s: float, pixels: Frame | Callable[[], Frame]) -> None:
        self.number = number
        self.time_s = time_s
        self._pixels = pixels

    @property
    def pixels(self) -> Frame:
        """RGB picture, (H, W, 3) uint8.

        Raises:
            DecodeError: it cannot be made.
        """
        if callable(self._pixels):
            self._pixels = self._pixels()
        return self._pixels


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
