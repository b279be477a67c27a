"""Settings of the leak report."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, Lt, MinLen

__all__ = ["DECISION_TIMES", "LeakConfig", "leak_mistakes"]

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


def leak_mistakes(own: LeakConfig) -> Iterator[str]:
    """Say what is wrong with the settings together, one line each, without the section's name."""
    missing = [time for time in DECISION_TIMES if time not in own.times]
    if missing:
        yield (
            f"times must contain 0.7, 0.8 and 0.9, which the verdict is about, got "
            f"{list(own.times)}; add {_listed(missing)}"
        )
    strange = [time for time in own.motion_times if time not in own.times]
    if strange:
        yield f"motion_times must be among times = {list(own.times)}, got {_listed(strange)}"
    for name in ("times", "motion_times", "start_times"):
        values = getattr(own, name)
        if len(set(values)) < len(values):
            yield f"{name} must differ from each other, got {list(values)}"


def _listed(times: Sequence[float]) -> str:
    return ", ".join(f"{time:g}" for time in times)
