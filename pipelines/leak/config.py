"""Settings of the leak report."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, Lt, MinLen

from cil.errors import ConfigError

__all__ = ["DECISION_TIMES", "LeakConfig"]

DECISION_TIMES = (0.7, 0.8, 0.9)
"""Ranks t that the verdict is about: much noise, but a good network still sees the motion."""

Count = Annotated[int, Ge(1)]
Rank = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakConfig:
    """The leak report; workers and intervals are those of the section evaluate."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
    times: tuple[Rank, ...] = (0.05, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
    """Ranks t of the training noise levels that one-step predictions are made at; 0.7, 0.8 and 0.9
    must be among them."""
    motion_times: tuple[Rank, ...] = (0.5, 0.7, 0.8, 0.9)
    """Those of them at which the prediction is decoded and its optical flow measured."""
    num_clips: Annotated[int, Ge(2)] = 64
    """Held-out clips that are probed, at most."""
    clips_per_unit: Annotated[int, Ge(2)] = 16
    """Clips that are probed and committed together; each is swapped with the next of its unit."""
    num_sampled_clips: Count = 16
    """Held-out clips that videos are sampled from, at most."""
    seeds_per_clip: Count = 1
    """Videos of each of them, at each start."""
    start_times: Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], MinLen(1)] = (
        *(1.0, 0.94, 0.9),
        *(0.8, 0.7, 0.6),
    )
    """Start times M in (0, 1] of the sampled videos; the largest is the one that arms are compared
    at."""
    analytic_init: bool = True
    """Sample from each M below 1 also from the Analytic-Init Gaussian."""
    num_steps: Count | None = None
    """Sampler steps; null takes each model's own."""
    num_shown: Annotated[int, Ge(0)] = 6
    """Images whose videos are shown side by side, those of the worst alignment first."""

    def __post_init__(self) -> None:
        for name, needed, known in (
            ("leak.times", DECISION_TIMES, self.times),
            ("leak.motion_times", self.motion_times, self.times),
        ):
            missing = [str(time) for time in needed if time not in known]
            if missing and name == "leak.times":
                raise ConfigError(
                    f"{name} must contain 0.7, 0.8 and 0.9, which the verdict is about, got "
                    f"{list(known)}; add {', '.join(missing)}"
                )
            if missing:
                raise ConfigError(
                    f"{name} must be among leak.times = {list(known)}, got {', '.join(missing)}"
                )
        for name in ("times", "motion_times", "start_times"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"leak.{name} must differ from each other, got {list(values)}")
