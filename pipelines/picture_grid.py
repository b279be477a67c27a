"""Pictures in rows and columns with words on them, for people who look at a run."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipelines.video_io import enlarge

__all__ = ["caption_height", "captioned", "picture_grid"]

Picture = npt.NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""

_GAP = 6
_LINE = 15
_MARGIN = 3
_LARGEST_SIDE = 256


def captioned(picture: Picture, text: str) -> Picture:
    """Put lines of text on a light strip above a picture; all strips of as many lines are alike.

    Args:
        picture: (H, W, 3) uint8 RGB.
        text: plain ASCII; lines that are too long are cut off by the picture's edge.
    """
    from PIL import Image, ImageDraw

    lines = text.split("\n")
    strip = Image.new("RGB", (picture.shape[1], caption_height(len(lines))), "white")
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + number * _LINE), line, fill="black")
    return np.concatenate([np.array(strip), picture])


def caption_height(num_lines: int) -> int:
    """Return the height of the strip with so many lines, in pixels."""
    return _LINE * num_lines + 2 * _MARGIN


def picture_grid(rows: Sequence[Sequence[tuple[str, Picture]]]) -> Picture:
    """Put pictures of one size, each under its text, into rows; small ones are enlarged.

    Args:
        rows: of (text, picture), equally many in each row.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    shown = []
    for row in rows:
        cells = []
        for text, picture in row:
            cells += [captioned(_fitted(picture), text), None]
        shown += [_joined(cells[:-1], axis=1), None]
    return _joined(shown[:-1], axis=0)


def _fitted(picture: Picture) -> Picture:
    """Bring the longer side near 256 pixels, by a whole number."""
    longest = max(picture.shape[:2])
    if longest > _LARGEST_SIDE:
        step = -(-longest // _LARGEST_SIDE)
        return picture[::step, ::step]
    larger: Picture = enlarge(picture[None])[0]
    return larger


def _joined(parts: Sequence[Picture | None], *, axis: int) -> Picture:
    """Join pictures along an axis; None is a white gap."""
    first = next(part for part in parts if part is not None)
    shape = list(first.shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([gap if part is None else part for part in parts], axis=axis)
