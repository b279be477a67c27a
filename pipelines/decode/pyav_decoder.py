"""PyAV: the reference. It decodes every file in order, and seeks where that is right."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cil.errors import DataError
from pipelines.decode.av_file import Converter, decoded, open_video
from pipelines.decode.clock import (
    TIME_TOLERANCE_S,
    FrameClock,
    check_asked,
    check_listed,
    check_time,
)
from pipelines.decode.errors import DecodeError, refusals
from pipelines.decode.frame import Frame, SourceFrame
from pipelines.decode.probe import VideoProbe
from pipelines.decode.trust import starts_at_keys

__all__ = ["PyavDecoder"]

_B_FRAME = 3
"""FFmpeg's AV_PICTURE_TYPE_B."""
_WORTH_SEEKING = 8
"""Frames that a seek must save; it costs about as many, for the decoder starts anew."""


class PyavDecoder:
    """Decodes with PyAV and its own FFmpeg, and takes damage for an error."""

    name = "pyav"

    def is_right_for(self, probe: VideoProbe) -> bool:
        """Return True: what PyAV cannot decode, nothing here can."""
        del probe
        return True

    def seeks(self, probe: VideoProbe) -> bool:
        """Return whether `frames_at` jumps to key frames; else it decodes from the start."""
        return starts_at_keys(probe)

    def frames(self, path: Path, probe: VideoProbe) -> Iterator[SourceFrame]:
        """Yield all frames in presentation order.

        Raises:
            DecodeError: the file is damaged.
        """
        with refusals(stage="decode", decoder=self.name):
            convert = Converter()
            for number, time_s, frame in _timed(path, probe):
                pixels = partial(_converted, convert, frame)
                yield SourceFrame(number=number, time_s=time_s, pixels=pixels)

    def frames_at(
        self, path: Path, probe: VideoProbe, numbers: Sequence[int], *, times_s: Sequence[float]
    ) -> Iterator[SourceFrame]:
        """Yield single frames.

        Args:
            path: video file.
            probe: of that file.
            numbers: frames that are wanted, ascending; a number may be repeated.
            times_s: presentation time of each of them in seconds.

        Raises:
            DecodeError: the file is damaged, or has other frames at those times.
        """
        check_asked(numbers, times_s)
        wanted = list(zip(numbers, times_s, strict=True))
        if not wanted:
            return
        with refusals(stage="decode", decoder=self.name):
            if self.seeks(probe):
                try:
                    for frame in self.jump(path, probe, numbers, times_s=times_s):
                        wanted.pop(0)
                        yield frame
                except DecodeError:
                    pass  # what cannot be entered at a key frame is decoded from the start
            if wanted:
                yield from _count_to(path, probe, wanted)

    def jump(
        self, path: Path, probe: VideoProbe, numbers: Sequence[int], *, times_s: Sequence[float]
    ) -> Iterator[SourceFrame]:
        """Yield single frames, each decoded from the nearest key frame before it.

        Raises:
            DecodeError: a key frame cannot be decoded on its own, or the frames are elsewhere.
        """
        with refusals(stage="decode", decoder=self.name), open_video(path) as (container, stream):
            frames = decoded(container.demux(stream))
            check_listed(numbers, times_s, probe)
            convert, current = Converter(), None
            for number, time_s in zip(numbers, times_s, strict=True):
                here_s = -float("inf") if current is None else current.time
                key_s = _key_worth_seeking(probe, here_s, time_s)
                if key_s is not None:
                    frames = decoded(_packets_from(container, stream, probe, key_s))
                    here_s = -float("inf")
                while here_s < time_s - TIME_TOLERANCE_S:
                    current = next(frames, None)
                    if current is None or current.time is None:
                        raise DataError(f"there is no frame {number} at {time_s:.4f} s")
                    here_s = current.time
                check_time(number, here_s, time_s)
                yield SourceFrame(number=number, time_s=time_s, pixels=convert(current))


def _converted(convert: Converter, frame: Any) -> Frame:
    """Make the pixels of a frame that may be long past."""
    with refusals(stage="decode", decoder=PyavDecoder.name):
        return convert(frame)


def _timed(path: Path, probe: VideoProbe) -> Iterator[tuple[int, float, Any]]:
    """Yield (number, time in seconds, frame of PyAV) of all frames in presentation order."""
    clock = FrameClock(probe)
    with open_video(path) as (container, stream):
        for number, frame in enumerate(decoded(container.demux(stream))):
            is_b_frame = frame.pict_type == _B_FRAME
            yield number, clock.time(number, frame.time, is_b_frame=is_b_frame), frame


def _count_to(
    path: Path, probe: VideoProbe, wanted: list[tuple[int, float]]
) -> Iterator[SourceFrame]:
    """Decode from the start until the last wanted (number, time in seconds) was found."""
    convert, position = Converter(), 0
    for number, time_s, frame in _timed(path, probe):
        if wanted[position][0] > number:
            continue
        pixels = convert(frame)
        while wanted[position][0] == number:
            check_time(number, time_s, wanted[position][1])
            yield SourceFrame(number=number, time_s=time_s, pixels=pixels)
            position += 1
            if position == len(wanted):
                return
    raise DataError(f"frame {wanted[position][0]} was wanted, and the video ends before it")


def _key_worth_seeking(probe: VideoProbe, here_s: float, time_s: float) -> float | None:
    """Return the time of the key frame to jump to, or None to decode on from here."""
    assert probe.times_s is not None
    keys = probe.key_times_s
    key_s = keys[max(0, bisect_right(keys, time_s + TIME_TOLERANCE_S) - 1)]
    saved = bisect_right(probe.times_s, key_s) - bisect_right(probe.times_s, here_s)
    return key_s if saved > _WORTH_SEEKING else None


def _packets_from(container: Any, stream: Any, probe: VideoProbe, key_s: float) -> Iterator[Any]:
    """Yield packets from a key frame on, without those that belong before it.

    Frames that are shown before the key frame but stored after it refer to frames before it; they
    cannot be decoded from here, and no later frame needs them.
    """
    last = probe.key_times_s.index(key_s)
    for target_s in (key_s, *reversed(probe.key_times_s[max(0, last - 2) : last])):
        container.seek(round(target_s / stream.time_base), stream=stream)
        packets = (packet for packet in container.demux(stream))
        first = next(packets, None)
        if first is None or first.pts is None or not first.is_keyframe:
            break
        landed_s = float(first.pts * first.time_base)
        if landed_s <= key_s + TIME_TOLERANCE_S:
            yield first
            yield from (p for p in packets if not p.size or p.pts is None or p.pts > first.pts)
            return
    raise DataError(f"seeking to the key frame at {key_s:.4f} s does not lead there")
