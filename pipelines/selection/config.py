"""The settings that decide which candidate clips become part of a data set."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

__all__ = ["SelectionConfig", "contradictions"]

_STRICT: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}

Share = Annotated[float, Ge(0), Le(1)]
Level = Annotated[float, Ge(0), Le(255)]
Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionConfig:
    """Which clips are kept. None turns a rule off."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    score_only: bool = False
    """Keep every clip, and only record which rule would have dropped it."""
    shot_threshold: Annotated[float, Gt(0), Le(255)] | None = 27.0
    """Mean change of hue, saturation and brightness, 0 to 255, at which a new shot begins. No clip
    crosses a cut. None takes every video for one shot."""
    min_height: Count | None = None
    """Least height of the video in pixels."""
    min_width: Count | None = None
    """Least width of the video in pixels."""
    min_source_fps: Positive | None = None
    """Least average frame rate of the video in Hz; below that of the clips, frames repeat."""
    min_motion: Annotated[float, Ge(0)] | None = None
    """Least motion in px/frame at a short side of 256 pixels. A still picture with camera noise
    has 0.1."""
    max_motion: Annotated[float, Ge(0)] | None = None
    """Most motion in px/frame at a short side of 256 pixels."""
    min_luma: Level | None = None
    """Least mean brightness, 0 to 255; below 16 a clip is nearly black."""
    min_contrast: Level | None = None
    """Least standard deviation of the brightness within a frame, 0 to 255."""
    max_jump: Annotated[float, Ge(1)] | None = None
    """Most that the largest motion between two frames may be over the median one."""
    min_consistent_share: Share | None = None
    """Least share of pixels, in [0, 1], whose motion is the same forwards and backwards; under 0.7
    the motion score of a clip is doubtful."""
    max_duplicate_distance: Annotated[int, Ge(0), Le(10)] | None = None
    """Clips whose perceptual hashes differ in at most this many of 64 bits count as the same, and
    the first is kept; clips of one video too, so a scene that hardly changes keeps its first.
    0 finds copies only; above 4, clips with little detail fall together."""
    max_clips_per_video: Count | None = None
    """Keep at most this many clips of one video."""
    clip_sampling: Literal["first", "spread", "random"] = "first"
    """Which clips max_clips_per_video keeps: the first ones, evenly spread ones, or a random choice
    that depends on the content of the video and the seed only."""
    sampling_seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    """Seed of clip_sampling = random."""


def contradictions(config: SelectionConfig) -> Iterator[str]:
    """Yield one line for each mistake that no single field can know."""
    low, high = config.min_motion, config.max_motion
    if low is not None and high is not None and low > high:
        yield f"max_motion must be >= min_motion = {low:g}, got {high:g}"
