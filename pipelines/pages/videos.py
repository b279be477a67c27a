"""Videos on a page: small GIFs as data URIs, which play without scripts and without a network."""

import base64
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.video_io import write_gif

__all__ = ["gif_uri"]


def gif_uri(video: npt.NDArray[np.uint8], *, fps: float, side: int) -> str:
    """Return a video as a data URI.

    Args:
        video: (F, H, W, 3) uint8 RGB.
        fps: frames per second.
        side: longer side in pixels, at most; a larger video is made smaller.
    """
    import cv2

    height, width = video.shape[1:3]
    factor = min(1.0, side / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in video])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.gif"
        write_gif(path, small, fps=fps)
        content = path.read_bytes()
    return f"data:image/gif;base64,{base64.b64encode(content).decode()}"
