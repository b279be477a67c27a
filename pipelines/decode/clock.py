"""Times of decoded frames, and the checks that none is missing, early or stays for days."""

import itertools
from bisect import bisect_left
from collections.abc import Sequence

from cil.errors import DataError
from pipelines.decode.errors import DecodeError
from pipelines.decode.probe import VideoProbe

__all__ = [
    "TIME_TOLERANCE_S",
    "FrameClock",
    "OrderCheck",
    "check_asked",
    "check_listed",
    "check_time",
]

TIME_TOLERANCE_S = 1e-4
"""Times closer than this are the same; no container stores frames faster."""
_LONGEST_FRAME_S = 60.0
"""How long a frame may stay on screen; one damaged time would repeat it for days."""
_LOST_FRAMES_ALLOWED = 32
"""Frames before the first key frame of an open group of pictures, which no decoder can show."""
_FRAME_IN_EVERY_PACKET = ("av1", "h264", "hevc", "mpeg2video", "vp9")
"""Codecs whose packets are all shown; those of others may say `keep the last frame`."""


class FrameClock:
    """Times of frames in seconds, in the order in which PyAV decodes them."""

    def __init__(self, probe: VideoProbe) -> None:
        self._probe = probe
        self._shift: float | None = None
        counted = (probe.times_s or ()) if probe.container == "avi" else ()
        gaps = [late - early for early, late in itertools.pairwise(counted)]
        self._is_steady = not gaps or max(gaps) - min(gaps) < TIME_TOLERANCE_S

    def time(self, index: int, stated_s: float | None, *, is_b_frame: bool) -> float:
        """Return the time of a decoded frame.

        AVI states decoding times, which run backwards around B-frames. There the frame takes its
        place in the list of the packets' times, which is right if no frame is moved past another,
        or if all stay equally long.

        Raises:
            DataError: the time is not known, or contradicts the frame rate.
        """
        times = self._probe.times_s
        if times is None:
            return self._counted(index, stated_s)
        if self._probe.container == "avi" and index < len(times):
            if is_b_frame and not self._is_steady:
                raise DataError(
                    "an AVI file with B-frames and dropped frames does not state when frames are "
                    "shown; convert it to mp4"
                )
            return times[index]
        if stated_s is None:
            raise DataError(f"frame {index} carries no time")
        return stated_s

    def _counted(self, index: int, stated_s: float | None) -> float:
        """Count frames at the average rate; the times that are stated must agree."""
        rate = self._probe.average_fps
        if rate <= 0:
            raise DataError("frames carry no time and the container states no frame rate")
        time_s = index / rate
        if stated_s is not None:
            self._shift = stated_s - time_s if self._shift is None else self._shift
            if abs(stated_s - self._shift - time_s) > 0.5 / rate:
                raise DataError(
                    f"frame {index} at {stated_s:.3f} s is not where {rate:g} Hz puts it, and "
                    "other frames carry no time"
                )
        return time_s


class OrderCheck:
    """Checks of a video that is decoded from its first frame to its last."""

    def __init__(self, probe: VideoProbe, *, decoder: str) -> None:
        self._probe = probe
        self._decoder = decoder
        self._first_s = self._last_s = 0.0
        self._count = 0

    def add(self, time_s: float) -> None:
        """Check the next frame.

        Raises:
            DataError: it comes before the last one, or long after it.
        """
        if self._count == 0:
            self._first_s = self._last_s = time_s
        if time_s < self._last_s:
            raise DataError(
                f"frame {self._count} at {time_s:.3f} s comes before {self._last_s:.3f} s"
            )
        if time_s - self._last_s > _LONGEST_FRAME_S:
            raise DecodeError(
                f"the frame after {self._last_s:.2f} s comes {time_s - self._last_s:.0f} s later, "
                f"and {_LONGEST_FRAME_S:.0f} s are allowed; its time is damaged, or this is a "
                "slide show",
                stage="decode",
                decoder=self._decoder,
                exception="LongGap",
            )
        self._last_s = time_s
        self._count += 1

    def finish(self) -> None:
        """Refuse a video of which frames are missing, but for a few before the first whole one.

        A frame that is missing later would leave the one before it on screen, and shift all that
        follows where frames are counted, in AVI.

        Raises:
            DataError: frames are missing.
        """
        if not self._count:
            raise DataError("no frame could be decoded")
        times = self._probe.times_s
        if times is None:
            return
        lost = len(times) - self._count
        lost_before = bisect_left(times, self._first_s - TIME_TOLERANCE_S)
        counted = self._probe.container == "avi" or self._probe.codec in _FRAME_IN_EVERY_PACKET
        if lost > _LOST_FRAMES_ALLOWED or (counted and lost > lost_before):
            raise DataError(f"only {self._count} of {len(times)} frames could be decoded")


def check_asked(numbers: Sequence[int], times_s: Sequence[float]) -> None:
    """Check that wanted frame numbers ascend, may they repeat, and that each has a time.

    Raises:
        ValueError: they do not.
    """
    if len(numbers) != len(times_s):
        raise ValueError(f"{len(numbers)} frame numbers came with {len(times_s)} times")
    if list(numbers) != sorted(numbers) or (numbers and numbers[0] < 0):
        raise ValueError("frame numbers must ascend, and none is below 0")


def check_time(number: int, found_s: float, wanted_s: float) -> None:
    """Check that a frame of random access is the one at the wanted time.

    Raises:
        DataError: it is another one.
    """
    if abs(found_s - wanted_s) > TIME_TOLERANCE_S:
        raise DataError(f"frame {number} was wanted at {wanted_s:.4f} s, and is at {found_s:.4f} s")


def check_listed(numbers: Sequence[int], times_s: Sequence[float], probe: VideoProbe) -> None:
    """Check that the container has frames of those numbers at those times.

    Raises:
        DataError: it has not, or states no times.
    """
    stated = probe.times_s or ()
    if numbers and numbers[-1] >= len(stated):
        raise DataError(f"frame {numbers[-1]} was wanted, and there are {len(stated)}")
    for number, time_s in zip(numbers, times_s, strict=True):
        check_time(number, stated[number], time_s)
