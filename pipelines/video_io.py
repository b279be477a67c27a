"""Images in, videos out: mp4 for players, GIF for pages, contact sheets for eyes."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cil.errors import ConfigError
from pipelines.storage import commit, temporary_beside

__all__ = [
    "enlarge",
    "read_gif",
    "read_image",
    "side_by_side",
    "split_row",
    "write_gif",
    "write_mp4",
]

Video = npt.NDArray[np.uint8]
"""(F, H, W, 3) uint8 RGB."""

_SMALLEST_SIDE = 256
_GAP = 8
_GIF_COLOURS = 96


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """Read an image file as (H, W, 3) uint8 RGB, turned as its EXIF says.

    Raises:
        ConfigError: it is missing or not an image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)  # phones store pictures lying
            if upright.mode == "I;16":  # Pillow would clip 65535 greys at 255
                upright = Image.fromarray((np.array(upright) // 257).astype(np.uint8))
            return np.array(upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(
            f"cannot read the image {path}: {error}; give a PNG, JPEG or WebP file"
        ) from error


def enlarge(video: Video) -> Video:
    """Enlarge a small video by a whole number so that people can see it."""
    import cv2

    height, width = video.shape[1:3]
    factor = max(1, -(-_SMALLEST_SIDE // min(height, width)))
    if factor == 1:
        return video
    size = (width * factor, height * factor)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in video])


def side_by_side(videos: Any) -> Video:
    """Put (B, F, H, W, 3) videos in one row, enlarged, with a light gap between them."""
    parts: list[Video] = []
    for number, video in enumerate(np.asarray(videos)):
        large = enlarge(video)
        if number:
            parts.append(np.full((*large.shape[:2], _GAP, 3), 255, np.uint8))
        parts.append(large)
    return np.concatenate(parts, axis=2)


def split_row(row: Video, count: int) -> list[Video]:
    """Take the videos of equal size apart that `side_by_side` put into one row."""
    width = (row.shape[2] - _GAP * (count - 1)) // count
    starts = [number * (width + _GAP) for number in range(count)]
    return [row[:, :, start : start + width] for start in starts]


def read_gif(path: Path, *, fps: float) -> Video:
    """Read a GIF that `write_gif` wrote with so many frames per second.

    Frames that are alike stand in it once, with their duration; they are repeated here.
    """
    from PIL import Image, ImageSequence

    frames = []
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            picture = np.array(frame.convert("RGB"))
            frames += [picture] * max(1, round(frame.info["duration"] * fps / 1000))
    return np.stack(frames)


def write_mp4(path: Path, video: Video, *, fps: float) -> None:
    """Write an H.264 file that every player opens; odd sizes are padded by one pixel."""
    from fractions import Fraction

    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = video.shape[1:3]
    video = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with _whole_file(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16", "threads": "1"}
        for frame in video:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_gif(path: Path, video: Video, *, fps: float) -> None:
    """Write an endless GIF with one palette for all frames, so that colours do not flicker."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    palette = Image.fromarray(video.reshape(-1, *video.shape[2:])).quantize(_GIF_COLOURS)
    frames = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in video
    ]
    # Times in a GIF are whole hundredths of a second, and players slow down below two of them.
    ends = [round(100 * (index + 1) / fps) for index in range(len(frames))]
    durations = [10 * max(end - start, 2) for start, end in itertools.pairwise([0, *ends])]
    with _whole_file(path) as temporary:
        frames[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
        )


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; the file gets its own name when it is whole."""
    temporary = temporary_beside(path)
    try:
        yield temporary
        commit(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
