"""How much a video moves: the mean optical flow between adjacent frames, and what to read with it.

In: frames (F, H, W, 3) uint8 RGB, or one after the other. Out: a `MotionScore`, in pixels per frame
of a picture with a short side of 256 pixels, so that videos of any size can be compared.

Flow is OpenCV's DIS with the FAST preset (arXiv 1603.03590), on grey frames, resized by area where
they shrink and linearly where they grow. Against known shifts it is right to 2 % and 0.06 px;
noise of two grey levels on a still picture reads as 0.1 px/frame, a repeated frame as exactly 0.

The mean must not be read alone. Where a video falls apart, flow is large and means nothing:
`MotionScore.consistent` counts only pixels that flow forwards and then backwards brings home, and
`MotionScore.consistent_share` says how many do; under 0.7, look at the video. `MotionScore.jump`
is large where a still video changes once.

Another method of flow can take the place of DIS (`cil.metrics.flow.FlowMethod`); never compare
scores of two methods.

OpenCV computes with as many threads as ``cv2.setNumThreads`` allows; that is the caller's to set,
and the numbers do not depend on it.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cil.errors import DataError
from cil.metrics.flow import SHORT_SIDE, DISFlow, FlowMethod, motion_frame

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

__all__ = [
    "SHORT_SIDE",
    "FlowMeter",
    "MotionAccumulator",
    "MotionScore",
    "Transition",
    "motion_frame",
    "motion_score",
]

STILL = 0.1
"""Flow of a still picture with camera noise, in px/frame: the least that a jump is compared to."""

FASTEST_SHARE = 0.05
"""Share of the pixels that count as fastest."""

_TOLERANCE_SHARE = 0.01
_TOLERANCE_PX2 = 0.5
"""Forwards f and backwards b agree where |f + b|^2 <= 0.01 (|f|^2 + |b|^2) + 0.5; Sundaram, Brox
and Keutzer, Dense point trajectories by GPU-accelerated large displacement optical flow, 2010."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """Motion from one frame to the next, in pixels at a short side of 256."""

    magnitude: float
    """Mean flow."""
    consistent: float
    """Mean flow where pixels whose flow backwards does not bring them home count as 0."""
    consistent_share: float
    """Share of the pixels that come home, in [0, 1]."""
    fastest: float = 0.0
    """Mean flow of the fastest 5 % of the pixels; what `dynamic_degree` looks at."""


NO_MOTION = Transition(magnitude=0.0, consistent=0.0, consistent_share=1.0)
"""From a frame to itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionScore:
    """Motion of a video of F frames; all but the shares and the jump in px/frame at short side 256.

    Raises:
        DataError: there is no transition.
    """

    transitions: tuple[Transition, ...]
    """The F - 1 transitions, in order."""

    def __post_init__(self) -> None:
        if not self.transitions:
            raise DataError("motion needs at least 2 frames, got 1; give a longer video")

    @property
    def value(self) -> float:
        """Mean flow over all transitions: the motion score."""
        return statistics.fmean(self.per_transition)

    @property
    def consistent(self) -> float:
        """Mean flow where inconsistent pixels count as 0."""
        return statistics.fmean(item.consistent for item in self.transitions)

    @property
    def consistent_share(self) -> float:
        """Mean share of consistent pixels, in [0, 1]."""
        return statistics.fmean(item.consistent_share for item in self.transitions)

    @property
    def per_transition(self) -> list[float]:
        """Mean flow of each transition."""
        return [item.magnitude for item in self.transitions]

    @property
    def median(self) -> float:
        """Median over the transitions."""
        return statistics.median(self.per_transition)

    @property
    def first_transition(self) -> float:
        """Mean flow from the conditioning frame to the next."""
        return self.transitions[0].magnitude

    @property
    def jump(self) -> float:
        """Largest transition over the median one, both at least 0.1 px/frame; 1 is even motion."""
        return max(*self.per_transition, STILL) / max(self.median, STILL)


class FlowMeter:
    """Measures transitions between grey frames of one size; for one thread at a time."""

    def __init__(self, method: FlowMethod | None = None) -> None:
        """Take a method of flow; None is DIS."""
        self.method: FlowMethod = DISFlow() if method is None else method
        self._grid: Any = None

    def between(self, early: "Pixels", late: "Pixels") -> Transition:
        """Return the motion between two frames made by the method's ``prepare``.

        Raises:
            DataError: their sizes differ.
        """
        import cv2
        import numpy as np

        if early.shape != late.shape:
            raise DataError(f"frames of one video differ in size: {early.shape}, {late.shape}")
        if np.array_equal(early, late):
            return NO_MOTION
        forwards = self.method.flow(early, late)
        backwards = self.method.flow(late, early)
        if self._grid is None or self._grid.shape[:2] != early.shape[:2]:
            rows, columns = np.indices(early.shape[:2], dtype=np.float32)
            self._grid = np.stack([columns, rows], axis=-1)
        landing = self._grid + forwards
        home = cv2.remap(
            backwards, landing, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        squared = _squared_length(forwards)
        allowed = _TOLERANCE_SHARE * (squared + _squared_length(home)) + _TOLERANCE_PX2
        agrees = _squared_length(forwards + home) <= allowed
        magnitude = np.sqrt(squared)
        return Transition(
            magnitude=float(magnitude.mean(dtype=np.float64)),
            consistent=float((magnitude * agrees).mean(dtype=np.float64)),
            consistent_share=float(agrees.mean()),
            fastest=_mean_of_fastest(magnitude),
        )


def _squared_length(flow: Any) -> Any:
    columns, rows = flow[..., 0], flow[..., 1]
    return columns * columns + rows * rows


def _mean_of_fastest(magnitude: Any) -> float:
    import numpy as np

    flat = magnitude.ravel()
    kept = max(int(flat.size * FASTEST_SHARE), 1)
    fastest = np.partition(flat, flat.size - kept)[flat.size - kept :]
    # Sorted, so that the sum does not depend on how the partition left them.
    return float(np.sort(fastest).mean(dtype=np.float64))


class MotionAccumulator:
    """Scores a video that comes frame by frame; it holds one frame."""

    def __init__(self, method: FlowMethod | None = None) -> None:
        """Take a method of flow; None is DIS."""
        self._meter = FlowMeter(method)
        self._last: Pixels | None = None
        self._transitions: list[Transition] = []

    def add(self, frame: "Pixels") -> None:
        """Take the next frame, (H, W, 3) uint8 RGB.

        Raises:
            DataError: not such a frame, or of another size than the one before.
        """
        ready = self._meter.method.prepare(frame)
        if self._last is not None:
            self._transitions.append(self._meter.between(self._last, ready))
        self._last = ready

    def score(self) -> MotionScore:
        """Return the score of all frames so far.

        Raises:
            DataError: fewer than two frames were given.
        """
        return MotionScore(transitions=tuple(self._transitions))


def motion_score(
    frames: "Pixels | Sequence[Pixels]", *, method: FlowMethod | None = None
) -> MotionScore:
    """Return how much a video moves.

    Args:
        frames: (F, H, W, 3) uint8 RGB, F >= 2.
        method: of flow; None is DIS.

    Raises:
        DataError: fewer than two frames, or frames of another kind.
    """
    accumulator = MotionAccumulator(method)
    for frame in frames:
        accumulator.add(frame)
    return accumulator.score()
