"""What follows from motion scores: does a clip move, how far off is an arm, what is suspicious.

In: frames, and `MotionScore`s. Out: `DynamicDegree`, `MotionError` and flags in words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cil.errors import DataError
from cil.metrics.flow import FlowMethod
from cil.metrics.motion import MotionScore, motion_score

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

__all__ = [
    "BLACK",
    "FLAT",
    "INCONSISTENT",
    "JUMP",
    "DynamicDegree",
    "MotionError",
    "dynamic_degree",
    "luminance",
    "motion_error",
    "motion_flags",
]

JUMP = 10.0
"""A video jumps where its largest transition is so many times the median one."""
INCONSISTENT = 0.7
"""A video falls apart, or is too dark for flow, where fewer pixels than this share come home."""
BLACK = 16.0
"""A video is black below this mean grey level of 0 to 255: flow is then that of noise."""
FLAT = 2.0
"""A video is flat below this standard deviation of grey levels: flow has nothing to hold on to."""

_FPS = 8.0
_FASTEST_PX = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicDegree:
    """Whether a clip moves, as VBench asks it."""

    moves: bool
    """Enough transitions are fast."""
    name: str
    """``dynamic_degree`` with RAFT, else ``dynamic_degree_`` and the method of flow."""
    fastest: tuple[float, ...]
    """Mean flow of the fastest 5 % of the pixels per transition, in px at a short side of 256."""
    threshold: float
    """A transition above it is fast, in the same unit."""
    needed: int
    """Fast transitions that make a moving clip."""


def dynamic_degree(
    frames: "Pixels",
    *,
    fps: float,
    method: FlowMethod | None = None,
    score: MotionScore | None = None,
) -> DynamicDegree:
    """Tell whether a clip moves; the share of such clips is the dynamic degree of an arm.

    Every round(fps / 8)-th frame is taken. A transition is fast where its fastest 5 % of pixels
    move more than 6 px on average (6 * 8 / fps for clips below 8 fps); a clip of n taken frames
    moves where round(n / 4) transitions, and at least one, are fast.

    Args:
        frames: (F, H, W, 3) uint8 RGB.
        fps: of the frames, > 0.
        method: of flow; None is DIS. VBench's numbers are those of RAFT only.
        score: of the same frames by the same method, where there is one already: saves the flow
            if every frame is taken.

    Raises:
        DataError: fps that is not above 0, or fewer than two frames are left.

    Source: VBench, arXiv 2311.17982, and its code, with at least one fast transition added: two
        frames would always move else. VBench measures at the video's own size and scales the
        threshold; here the short side is 256.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise DataError(f"fps must be > 0, got {fps}")
    step = max(1, round(fps / _FPS))
    taken = frames[::step]
    if len(taken) < 2:
        raise DataError(
            f"the dynamic degree needs at least 2 frames at 8 fps, got {len(taken)} of "
            f"{len(frames)} at {fps:g} fps; give a longer video"
        )
    if score is None or step > 1:
        score = motion_score(taken, method=method)
    fastest = tuple(item.fastest for item in score.transitions)
    threshold = _FASTEST_PX * max(1.0, _FPS / fps)
    needed = max(round(4 * len(taken) / 16), 1)
    used = "dis" if method is None else method.name
    return DynamicDegree(
        moves=sum(value > threshold for value in fastest) >= needed,
        name="dynamic_degree" if used == "raft" else f"dynamic_degree_{used}",
        fastest=fastest,
        threshold=threshold,
        needed=needed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionError:
    """Motion of generated videos against that of real ones, both in the unit of the motion."""

    mean: float
    """Mean of generated less real: the motion-score error of the paper; < 0 is too still."""
    mean_absolute: float
    """Mean size of the differences: also large where motion is right on average only."""
    sem: float | None
    """Standard error of ``mean`` (ddof 1); None for one clip."""
    ratio_of_means: float | None
    """Mean generated over mean real motion; None where no real clip moves."""
    pearson: float | None
    """Correlation over clips; None where one side does not vary."""
    n: int
    """Clips."""


def motion_error(motion_real: Any, motion_generated: Any) -> MotionError:
    """Compare the motion of generated videos with that of the real clips they started from.

    Args:
        motion_real: (N,) motion scores of the real clips, finite.
        motion_generated: (N,) of the generated videos, in the same order, with the same fps and
            number of frames.

    Raises:
        DataError: different or no numbers of clips, or a value that is not finite.

    Source: arXiv 2406.15735, motion score error.
    """
    import numpy as np

    real = np.asarray(motion_real, dtype=np.float64)
    made = np.asarray(motion_generated, dtype=np.float64)
    if real.ndim != 1 or real.shape != made.shape or not real.size:
        raise DataError(
            f"motion must be (N,) of the same clips with N >= 1, got {real.shape} and {made.shape}"
        )
    if not (np.isfinite(real).all() and np.isfinite(made).all()):
        raise DataError("motion must be finite, got NaN or Inf; find the broken clip")
    gaps, count = made - real, len(real)
    varies = count > 1 and np.ptp(real) > 0 and np.ptp(made) > 0
    return MotionError(
        mean=float(gaps.mean()),
        mean_absolute=float(np.abs(gaps).mean()),
        sem=float(gaps.std(ddof=1) / math.sqrt(count)) if count > 1 else None,
        ratio_of_means=float(made.mean() / real.mean()) if real.mean() > 0 else None,
        pearson=float(np.corrcoef(real, made)[0, 1]) if varies else None,
        n=count,
    )


def luminance(frames: "Pixels") -> float:
    """Return the mean grey level (Rec. 601) of frames (F, H, W, 3) uint8 RGB, 0 to 255."""
    return float((frames.mean(axis=(0, 1, 2), dtype="float64") * (0.299, 0.587, 0.114)).sum())


def motion_flags(score: MotionScore, frames: "Pixels | Sequence[Pixels]") -> tuple[str, ...]:
    """Name why the motion of a clip must not be taken at its word.

    Args:
        score: of the frames.
        frames: (F, H, W, 3) uint8 RGB.

    Returns:
        Of ``jump`` (one transition is 10 times the median), ``inconsistent`` (flow does not lead
        back for more than 30 % of the pixels), ``black`` (mean grey level under 16) and ``flat``
        (grey levels hardly differ within a frame).
    """
    import numpy as np

    video = np.asarray(frames)
    weights = np.array([0.299, 0.587, 0.114])
    spread = float(np.mean([(frame @ weights).std() for frame in video]))
    found = {
        "jump": score.jump > JUMP,
        "inconsistent": score.consistent_share < INCONSISTENT,
        "black": luminance(video) < BLACK,
        "flat": spread < FLAT,
    }
    return tuple(name for name, is_so in found.items() if is_so)
