"""PyAV: the reference. It decodes every file in order, and seeks where that is right."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cil.errors import DataError
from pipelines.decode.av_file import decoded, open_video, upright
from pipelines.decode.clock import TIME_TOLERANCE_S, FrameClock, check_asked, check_time
from pipelines.decode.errors import refusals
from pipelines.decode.frame import SourceFrame
from pipelines.decode.probe import VideoProbe
from pipelines.decode.trust import INDEXED_CODECS, is_indexed

__all__ = ["PyavDecoder"]

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
        return is_indexed(probe) and probe.codec in INDEXED_CODECS

    def frames(self, path: Path, probe: VideoProbe) -> Iterator[SourceFrame]:
        """Yield all frames in presentation order.

        Raises:
            DecodeError: the file is damaged.
        """
        with refusals(stage="decode", decoder=self.name), open_video(path) as (container, stream):
            clock = FrameClock(probe)
            for number, frame in enumerate(decoded(container.demux(stream))):
                time_s = clock.time(number, frame.time)
                yield SourceFrame(number=number, time_s=time_s, pixels=upright(frame))

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
        chosen = self._jumping if self.seeks(probe) else self._counting
        with refusals(stage="decode", decoder=self.name):
            yield from chosen(path, probe, wanted)

    def _counting(
        self, path: Path, probe: VideoProbe, wanted: list[tuple[int, float]]
    ) -> Iterator[SourceFrame]:
        """Decode from the start until the last wanted frame was found."""
        position = 0
        for frame in self.frames(path, probe):
            while wanted[position][0] == frame.number:
                check_time(frame.number, frame.time_s, wanted[position][1])
                yield frame
                position += 1
                if position == len(wanted):
                    return
        raise DataError(f"frame {wanted[position][0]} was wanted, and the video ends before it")

    def _jumping(
        self, path: Path, probe: VideoProbe, wanted: list[tuple[int, float]]
    ) -> Iterator[SourceFrame]:
        """Decode from the nearest key frame before each wanted frame."""
        with open_video(path) as (container, stream):
            frames = decoded(container.demux(stream))
            current: Any = None
            for number, time_s in wanted:
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
                yield SourceFrame(number=number, time_s=time_s, pixels=upright(current))


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
