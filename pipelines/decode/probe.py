"""What a container says: a pass over the packets, and one decoded frame for the upright size.

The packets give the presentation time of every frame, which is what all that follows relies on:
which decoder is right for the file, where its key frames are, and how many frames must come out.
"""

import itertools
import statistics
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cil.errors import DataError
from pipelines.decode.av_file import check_dimensions, decoded, open_video, probe_refusal
from pipelines.decode.errors import refusals

__all__ = ["VideoProbe", "Watch", "probe_video"]

Watch = Callable[[Iterator[Any]], Iterator[Any]]
"""Passes an iterator on and may tell others that it goes on."""

_H264_IDR = 5


_ODD_TURN = 0.01
"""Share of the smaller side of a turn that counts as one by an angle between 0 and 90."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoProbe:
    """What the container says of its best video stream."""

    container: str
    """FFmpeg's name of the format, such as ``matroska,webm``."""
    codec: str
    """FFmpeg's name of the codec, such as ``h264``."""
    pixel_format: str
    """FFmpeg's name of the stored pixel format, such as ``yuv420p``."""
    width: int
    """Columns in pixels, upright."""
    height: int
    """Rows in pixels, upright."""
    rotation: int
    """Degrees by which a stored frame is turned counter-clockwise: 0, 90, -90 or 180."""
    num_frames: int
    """Packets that are shown; codecs that may say `keep the last frame` can give fewer frames."""
    average_fps: float
    """Frames per second in Hz, from the frame times; 0 if nothing states it."""
    duration_s: float
    """From the first frame to the end of the last, in seconds; 0 if nothing states it."""
    times_s: tuple[float, ...] | None
    """Presentation times of the frames in seconds, ascending; None if packets lack them."""
    has_edit_list: bool
    """Whether packets are decoded but not shown."""
    has_open_gop: bool
    """Whether a key frame is such that frames after it need frames before it."""
    key_times_s: tuple[float, ...]
    """Presentation times of the key frames in seconds, ascending; in AVI, decoding times."""
    time_base_s: float = 0.0
    """Unit of the container's clock in seconds; times are rounded to it. 0 if it is not stated."""


def probe_video(path: Path, watch: Watch = iter) -> VideoProbe:
    """Read container, codec, frame times and size.

    Args:
        path: video file.
        watch: passes the packets on and may tell others that it goes on.

    Raises:
        DecodeError: the file cannot be opened, was cut off, has no video, or an absurd size.
    """
    with refusals(stage="probe", decoder="pyav"), open_video(path) as (container, stream):
        # AVI states when packets are decoded. FFmpeg guesses from it when they are shown, and is
        # off by a frame or two, which matters where the rate is not constant.
        clock = "dts" if container.format.name == "avi" else "pts"
        packets = _read_packets(watch(container.demux(stream)), stream, clock)
        container_name = container.format.name
        codec = stream.codec_context.codec.canonical_name
        pixel_format = stream.codec_context.pix_fmt or "unknown"
        stated_rate = float(stream.average_rate or 0)
        time_base_s = float(stream.time_base or 0)
    if not packets.num_shown + packets.num_hidden:
        raise probe_refusal("the video stream has no frames", "NoFrames")
    width, height, rotation = _first_frame(path)
    times = None if packets.num_timeless else tuple(sorted(packets.times_s))
    rate = stated_rate
    if times and times[-1] > times[0]:
        rate = (len(times) - 1) / (times[-1] - times[0])
    return VideoProbe(
        container=container_name,
        codec=codec,
        pixel_format=pixel_format,
        width=width,
        height=height,
        rotation=rotation,
        num_frames=packets.num_shown,
        average_fps=rate,
        duration_s=_duration_s(times, packets.num_shown, rate),
        times_s=times,
        has_edit_list=packets.num_hidden > 0,
        has_open_gop=packets.has_open_gop,
        key_times_s=tuple(sorted(packets.key_times_s)),
        time_base_s=time_base_s,
    )


class _Packets:
    """What the packets of one stream say."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.key_times_s: list[float] = []
        self.num_shown = self.num_hidden = self.num_timeless = 0
        self.has_open_gop = False


def _read_packets(packets: Iterator[Any], stream: Any, clock: str) -> _Packets:
    found = _Packets()
    is_h264 = stream.codec_context.codec.canonical_name == "h264"
    extra = stream.codec_context.extradata or b""
    # An avcC header states how many bytes hold the length of each unit; others use start codes.
    length_bytes = (extra[4] & 3) + 1 if len(extra) > 4 and extra[0] == 1 else None
    for packet in packets:
        if not packet.size:
            continue
        if packet.is_corrupt:
            raise probe_refusal("a packet is incomplete; the file was cut off", "CutOff")
        if packet.is_discard:
            found.num_hidden += 1
            continue
        found.num_shown += 1
        ticks = getattr(packet, clock)
        if ticks is None or packet.time_base is None:
            found.num_timeless += 1
            continue
        time_s = float(ticks * packet.time_base)
        found.times_s.append(time_s)
        if packet.is_keyframe:
            found.key_times_s.append(time_s)
            if is_h264 and not _resets_h264(bytes(packet), length_bytes):
                found.has_open_gop = True
        elif found.key_times_s and time_s < found.key_times_s[-1]:
            found.has_open_gop = True
    return found


def _resets_h264(packet: bytes, length_bytes: int | None) -> bool:
    """Return whether a packet has an IDR picture, at which H.264 decoders start anew.

    Containers also flag other pictures as key frames, those from which decoding recovers.
    """
    if length_bytes is None:
        return any(unit and unit[0] & 31 == _H264_IDR for unit in packet.split(b"\0\0\1")[1:])
    start = 0
    while start + length_bytes < len(packet):
        length = int.from_bytes(packet[start : start + length_bytes], "big")
        start += length_bytes
        if packet[start] & 31 == _H264_IDR:
            return True
        start += length
    return False


def _first_frame(path: Path) -> tuple[int, int, int]:
    """Return upright width and height in pixels and the rotation in degrees."""
    with refusals(stage="decode", decoder="pyav"), open_video(path) as (container, stream):
        frame = next(decoded(container.demux(stream)), None)
        if frame is None:
            raise DataError("no frame could be decoded")
        check_dimensions(frame.height, frame.width)
        _check_upright(frame)
        quarters = round(frame.rotation / 90)
        size = (frame.height, frame.width) if quarters % 2 else (frame.width, frame.height)
        return *size, 90 * quarters


def _check_upright(frame: Any) -> None:
    """Refuse a picture that is mirrored or turned by an odd angle; no decoder here undoes that.

    Raises:
        DecodeError: the display matrix is not a turn by a multiple of 90 degrees.
    """
    for data in frame.side_data:
        if data.type.name != "DISPLAYMATRIX":
            continue
        a, b, _, c, d, *_ = struct.unpack("<9i", bytes(data))
        if a * d - b * c <= 0:
            raise probe_refusal("its display matrix mirrors the picture", "Mirrored")
        if min(abs(a), abs(b)) > _ODD_TURN * max(abs(a), abs(b)):
            raise probe_refusal(
                f"its display matrix turns the picture by {frame.rotation:g} degrees", "OddTurn"
            )


def _duration_s(times_s: tuple[float, ...] | None, num_frames: int, rate: float) -> float:
    """Return the whole duration in seconds; the last frame stays as long as most do."""
    if not times_s or times_s[-1] == times_s[0]:
        return num_frames / rate if rate > 0 else 0.0
    gaps = [late - early for early, late in itertools.pairwise(times_s)]
    return times_s[-1] - times_s[0] + statistics.median(gaps)
