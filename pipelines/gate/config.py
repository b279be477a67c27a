"""Settings of the gate."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, MinLen

__all__ = ["GateConfig"]

Count = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """What a new model must reach to be promoted; see docs/retraining.md.

    Against a champion a measure may be worse by no more than noise explains: it fails if the whole
    interval of the paired difference is beyond the tolerance. Without a champion the bounds alone
    decide. A measure that is missing or not finite fails.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
    num_clips: Annotated[int, Ge(2)] = 64
    """Held-out clips that both models are measured on, at most."""
    num_sampled_clips: Count = 16
    """Held-out clips that both models sample videos for, at most."""
    seeds_per_clip: Count = 2
    """Videos of each of them and of each model."""
    start_times: Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], MinLen(1)] = (1.0,)
    """Start times M of these videos; the largest is the one that is judged."""
    motion_error_tolerance: Share = 0.0
    """How much larger the motion error may be, as a share of the champion's."""
    leak_tolerance: Share = 0.0
    """How much smaller the motion transfer may be, as a share of the champion's."""
    alignment_tolerance: Share = 0.1
    """How much larger the alignment error may be, as a share of the champion's."""
    distance_tolerance: Share = 0.0
    """How much larger FVD and the other distances may be, as a share of the champion's; only those
    whose extractor is set in `evaluate` are judged."""
    max_motion_error: Annotated[float, Gt(0)] | None = None
    """Largest motion error of any promoted model, px/frame; null sets no bound."""
    min_motion_transfer: float | None = None
    """Least motion transfer ratio of any promoted model; null sets no bound."""
    max_alignment_error: Annotated[float, Gt(0)] | None = None
    """Largest alignment error of any promoted model, squared, of values in [0, 1]; null sets no
    bound."""
    max_distance: Annotated[float, Gt(0)] | None = None
    """Largest FVD of any promoted model; null sets no bound."""
