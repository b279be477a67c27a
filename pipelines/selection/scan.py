"""One pass over the frames of a video: shots, candidate clips, and the numbers to choose them by.

In: source frames in order of presentation, what the container says, `ScanSettings`. Out: a
`VideoScan`. At most a handful of frames is held, however long the video is.

A clip shows what is on screen at the times start, start + 1/fps, start + 2/fps, ...; the grid of
these times begins anew at every shot, so no clip crosses a cut.
"""

import dataclasses
import functools
import statistics
from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cil.errors import ConfigError, DataError
from cil.metrics.motion import NO_MOTION
from pipelines.decode import DecodeError, VideoProbe
from pipelines.decode.frame import SourceFrame
from pipelines.selection.bucket import Bucket, choose
from pipelines.selection.candidates import CandidateClip, VideoScan
from pipelines.selection.measures import FrameMeasures, FrameMeter, clip_scores
from pipelines.selection.shots import with_cuts
from pipelines.selection.windows import WindowCutter

__all__ = ["ScanSettings", "scan_frames", "settings_from_json"]

_TIME_TOLERANCE_S = 1e-4
_COARSEST_CLOCK_S = 1e-3
"""Of the clocks that are allowed for; AVI states frames, not times."""
_LONGEST_FRAME_S = 60.0
"""How long a frame may stay on screen; one damaged time would repeat it for days."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanSettings:
    """What is looked for in a video.

    Raises:
        ConfigError: a number is out of its range, or there are no buckets.
    """

    buckets: tuple[Bucket, ...]
    """Sizes and lengths of clips; the size that fits the video is used."""
    fps: float
    """Frames per second of a clip, in Hz."""
    clip_stride: int | None = None
    """Frames from the start of a clip to the start of the next; None takes the clip's length."""
    shot_threshold: float | None = 27.0
    """Change between frames that makes a cut, 0 to 255; None takes the video for one shot."""

    def __post_init__(self) -> None:
        if not self.buckets:
            raise ConfigError("at least one bucket is needed, got none")
        if not 0 < self.fps < float("inf"):
            raise ConfigError(f"fps must be finite and above 0, got {self.fps}")
        if self.clip_stride is not None and self.clip_stride < 1:
            raise ConfigError(f"clip_stride must be at least 1, got {self.clip_stride}")

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        names = [bucket.name for bucket in self.buckets]
        return {**dataclasses.asdict(self), "buckets": names}


def settings_from_json(raw: dict[str, Any]) -> ScanSettings:
    """Build the settings from what `ScanSettings.to_json` returned."""
    buckets = tuple(Bucket.parse(name) for name in raw["buckets"])
    return ScanSettings(**{**raw, "buckets": buckets})


def scan_frames(
    frames: Iterable[SourceFrame], probe: VideoProbe, settings: ScanSettings
) -> VideoScan:
    """Scan a video.

    Args:
        frames: all frames in order of presentation, upright.
        probe: what the container says.
        settings: what is looked for.

    Returns:
        The candidate clips; a video that gives none says why in ``reason``.

    Raises:
        DecodeError: a frame lasts more than a minute.
        DataError: there are no frames.
    """
    buckets = choose(settings.buckets, probe.width, probe.height)
    measure = FrameMeter(buckets[0])
    # Two times are compared, each rounded to the container's clock, as Matroska's to milliseconds.
    tolerance_s = max(_TIME_TOLERANCE_S, 1.01 * min(probe.time_base_s, _COARSEST_CLOCK_S))
    new_shot = functools.partial(_Shot, measure, buckets, settings, tolerance_s=tolerance_s)
    gaps = array("d")
    shots: list[_Shot] = []
    clips: list[CandidateClip] = []
    current: SourceFrame | None = None
    zero = 0.0
    num_frames = 0
    for frame, starts_shot in with_cuts(frames, settings.shot_threshold):
        num_frames += 1
        if current is None:
            zero = frame.time_s
            shots.append(new_shot(number=0, start_s=0.0))
        else:
            _check_gap(current.time_s, frame.time_s)
            gaps.append(frame.time_s - current.time_s)
            time_s = frame.time_s - zero
            clips += shots[-1].show(current, until_s=time_s)
            if starts_shot:
                clips += shots[-1].finish(time_s)
                shots.append(new_shot(number=len(shots), start_s=time_s))
        current = frame
        del frame
    if current is None:
        raise DataError("no frame could be decoded")
    last_s = statistics.median(gaps) if gaps else 1 / max(probe.average_fps, 1.0)
    duration = current.time_s - zero + last_s
    clips += shots[-1].show(current, until_s=duration)
    clips += shots[-1].finish(duration)
    return VideoScan(
        clips=clips,
        reason=None if clips else _too_short(shots, buckets[-1], settings.fps),
        num_frames=num_frames,
        duration_s=duration,
        width=probe.width,
        height=probe.height,
        source_fps=probe.average_fps,
        shots=[shot.start_s for shot in shots],
        leftover_s=sum(shot.num_uncovered for shot in shots) / settings.fps,
    )


def _check_gap(early_s: float, late_s: float) -> None:
    if late_s - early_s > _LONGEST_FRAME_S:
        raise DecodeError(
            f"the frame after {early_s:.2f} s comes {late_s - early_s:.0f} s later, and "
            f"{_LONGEST_FRAME_S:.0f} s are allowed; its time is damaged, or this is a slide show",
            stage="select",
            decoder=None,
            exception="LongGap",
        )


def _too_short(shots: list["_Shot"], bucket: Bucket, fps: float) -> str:
    longest = max(shot.end_s - shot.start_s for shot in shots)
    return (
        f"too short: {longest:.2f} s in its longest shot, and one clip of {bucket.num_frames} "
        f"frames at {fps:g} Hz needs {bucket.num_frames / fps:.2f} s"
    )


class _Shot:
    """Candidate clips of one shot, from the frames that it shows."""

    def __init__(
        self,
        measure: FrameMeter,
        buckets: tuple[Bucket, ...],
        settings: ScanSettings,
        *,
        number: int,
        start_s: float,
        tolerance_s: float,
    ) -> None:
        self.start_s = start_s
        self.end_s = start_s
        self._measure = measure
        self._buckets = {bucket.num_frames: bucket for bucket in buckets}
        self._fps = settings.fps
        self._tolerance_s = tolerance_s
        self._number = number
        self._windows = WindowCutter(list(self._buckets), settings.clip_stride)
        self._wanted: deque[FrameMeasures] = deque()
        self._first = 0
        self._count = 0
        self._before: FrameMeasures | None = None

    @property
    def num_uncovered(self) -> int:
        """Wanted frames that are in no clip, once the shot is over."""
        return self._windows.num_uncovered

    def show(self, frame: SourceFrame, *, until_s: float) -> list[CandidateClip]:
        """Take ``frame`` for each wanted time before ``until_s``; return the clips it completes."""
        clips = []
        while self.start_s + self._count / self._fps < until_s - self._tolerance_s:
            if self._before is None or self._before.number != frame.number:
                wanted = self._measure.look(frame, self._before)
            else:
                wanted = dataclasses.replace(self._before, transition=NO_MOTION)
            self._before = wanted
            self._wanted.append(wanted)
            self._count += 1
            if (window := self._windows.add()) is not None:
                clips.append(self._clip(*window))
            self._forget()
        return clips

    def finish(self, end_s: float) -> list[CandidateClip]:
        """End the shot; return the clips that still fit."""
        self.end_s = end_s
        clips = [self._clip(*window) for window in self._windows.finish()]
        self._wanted.clear()
        return clips

    def _forget(self) -> None:
        while self._wanted and self._first < self._windows.start:
            self._wanted.popleft()
            self._first += 1

    def _clip(self, start: int, length: int) -> CandidateClip:
        offset = start - self._first
        shown = [self._wanted[offset + index] for index in range(length)]
        start_s = self.start_s + start / self._fps
        return CandidateClip(
            bucket=self._buckets[length].name,
            shot=self._number,
            start_s=start_s,
            end_s=start_s + length / self._fps,
            frames=[item.number for item in shown],
            crc32=[item.crc32 for item in shown],
            scores=clip_scores(shown),
        )
