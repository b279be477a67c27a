"""A video file opened by PyAV, as strictly as FFmpeg allows: one stream in, upright frames out."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cil.errors import DataError
from pipelines.decode.errors import DecodeError
from pipelines.decode.frame import Frame

__all__ = ["Converter", "check_dimensions", "decoded", "open_video", "probe_refusal"]

_SCRIPTS = ("concat", "dash", "hls", "image2", "imf", "mlv", "sdp")
"""Formats that name other files; the hash of such a file says nothing about its frames."""
_SMALLEST_SIDE = 8
_LARGEST_SIDE = 16384
_MOST_PIXELS = 2**26
"""Twice a frame of 8K; one RGB frame is then 192 MiB. Larger ones are damage, or an attack."""


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file and its best video stream: (container, stream).

    Raises:
        DecodeError: it is a script, or has no video that can be decoded.
    """
    import av

    # The absolute path is never taken for a URL, and no script can reach out to the network.
    options = {"protocol_whitelist": "file,crypto,data"}
    with av.open(str(path.absolute()), options=options) as container:
        if container.format.name in _SCRIPTS:
            text = f"the file is a script ({container.format.name}) that names other files"
            raise probe_refusal(text, "Script")
        stream = container.streams.best("video")
        if stream is None:
            raise probe_refusal("the file has no video stream", "NoVideo")
        assert isinstance(stream, av.VideoStream)
        if stream.codec_context is None:
            raise probe_refusal("the codec of the video stream is unknown", "UnknownCodec")
        check_dimensions(stream.codec_context.height, stream.codec_context.width)
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {
            "err_detect": "explode",  # no guessing over damage
            "max_pixels": str(_MOST_PIXELS),
        }
        yield container, stream


def check_dimensions(height: int, width: int) -> None:
    """Refuse a picture that is empty, a few pixels, or larger than any camera's.

    Raises:
        DecodeError: the size in pixels is absurd.
    """
    if height < 1 or width < 1:
        raise probe_refusal(f"the size of the picture is {width}x{height}", "NoSize")
    if max(height, width) > _LARGEST_SIDE or height * width > _MOST_PIXELS:
        raise probe_refusal(
            f"the picture is {width}x{height}, and {_LARGEST_SIDE} per side and {_MOST_PIXELS} "
            "pixels are allowed",
            "TooLarge",
        )
    if min(height, width) < _SMALLEST_SIDE:
        raise probe_refusal(
            f"the picture is {width}x{height}, and at least {_SMALLEST_SIDE} pixels per side are "
            "needed to show anything",
            "TooSmall",
        )


def decoded(packets: Iterable[Any]) -> Iterator[Any]:
    """Yield the frames of a stream's packets in presentation order.

    Raises:
        DataError: a frame is damaged, or of another size than the first.
    """
    size = None
    for number, frame in enumerate(frame for packet in packets for frame in packet.decode()):
        if frame.is_corrupt:
            raise DataError(f"frame {number} is corrupt")
        shape = (frame.width, frame.height, frame.rotation)
        size = size or shape
        if shape != size:
            raise DataError(
                f"the picture changes from {size[0]}x{size[1]} to {shape[0]}x{shape[1]} at frame "
                f"{number} (rotation {size[2]} and {shape[2]}); split the file there"
            )
        yield frame


class Converter:
    """Turns frames of PyAV into upright 8 bit RGB; PyAV itself does not apply the rotation flag."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        # One for all frames: to set up a conversion takes as long as to convert a small frame.
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> Frame:
        """Return (H, W, 3) RGB."""
        pixels = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def probe_refusal(message: str, exception: str) -> DecodeError:
    """Refuse a file before it is decoded."""
    return DecodeError(message, stage="probe", decoder="pyav", exception=exception)
