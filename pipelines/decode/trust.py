"""For which files random access was measured to be right; see docs/decoding.md for the tests.

Elsewhere decoders return wrong frames without an error: AVI, MPEG program and transport streams
have no frame index, edit lists shift it, and frames of equal times cannot be told apart.
"""

from cil.errors import DataError
from pipelines.decode.frame import Frame, SourceFrame
from pipelines.decode.probe import VideoProbe

__all__ = ["EIGHT_BIT_420", "delivered", "is_indexed", "starts_at_keys"]

_INDEXED_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_CODECS = ("av1", "h264", "hevc", "vp9")
"""Codecs for which decoding from a key frame on was measured to be right."""
EIGHT_BIT_420 = ("yuv420p", "yuvj420p")
"""Pixel formats that all decoders turn into the same RGB; for 10 bit they round differently."""


def is_indexed(probe: VideoProbe) -> bool:
    """Return whether frame numbers, times and key frames of a file can be relied on.

    The times must be stated and differ, all packets must be shown, and the first of them must be
    a key frame: frames before one cannot be decoded, and would shift the numbers of all others.
    """
    times, keys = probe.times_s, probe.key_times_s
    return (
        probe.container in _INDEXED_CONTAINERS
        and not probe.has_edit_list
        and bool(times and keys)
        and times is not None
        and keys[0] == times[0]
        and len(set(times)) == len(times)
    )


def starts_at_keys(probe: VideoProbe) -> bool:
    """Return whether decoding can start at every key frame of an indexed file.

    In H.264 a key frame may be one from which decoding recovers later, or cannot start strictly.
    """
    is_open = probe.codec == "h264" and probe.has_open_gop
    return is_indexed(probe) and probe.codec in _CODECS and not is_open


def delivered(pixels: Frame, probe: VideoProbe, *, number: int, time_s: float) -> SourceFrame:
    """Return what another decoder than the reference delivered, if it has the right size.

    Raises:
        DataError: it does not, for instance because a rotation flag was not understood.
    """
    if pixels.shape != (probe.height, probe.width, 3):
        height, width = pixels.shape[:2]
        raise DataError(f"frame {number} is {width}x{height}, not {probe.width}x{probe.height}")
    return SourceFrame(number=number, time_s=time_s, pixels=pixels)
