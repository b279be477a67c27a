"""How much noise the conditions of an arm had in training, as densities at some ranks t.

In: the noise of a model folder and the model's schedule. Out: a `NoiseDensity` to draw.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from cil.baselines import ConstantNoise, VideoLevelNoise
from cil.models import load
from cil.noise_schedule import NoiseSchedule
from cil.time_noise import TimeNoiseConfig
from pipelines.leak.arms import LeakArm, family_of
from pipelines.leak.resamples import Numbers

__all__ = ["DENSITY_TIMES", "NoiseDensity", "noise_density", "schedule_of"]

DENSITY_TIMES = (0.2, 0.5, 0.9)
"""Ranks that densities are drawn at."""
_POINTS = 400
_OUTSIDE = 0.002


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseDensity:
    """Distribution of sigma_cond at some ranks."""

    points: dict[float, float]
    """By rank, where sigma_cond is one number there; else empty."""
    grid: Numbers | None
    """(N,) sigma_cond, in standard deviations of the conditioning latents."""
    curves: dict[float, Numbers]
    """By rank: (N,) density per unit of sigma_cond."""
    mean: float
    """Mean over all training levels."""


@cache
def schedule_of(folder: str, family: str) -> NoiseSchedule:
    """Return the noise schedule of a model folder, without reading large weights."""
    options = (
        {} if family == "tiny" else {"weights": False}
    )  # which the tiny family cannot leave out
    return load(family, folder, **options).schedule


def noise_density(arm: LeakArm) -> NoiseDensity | None:
    """Return the distribution of an arm's sigma_cond; None where its folder does not say."""
    if arm.noise is None:
        return None
    schedule = schedule_of(str(arm.arm.folder), family_of(arm.arm.folder))
    return density_of(arm.noise, schedule)


def density_of(noise: TimeNoiseConfig, schedule: NoiseSchedule) -> NoiseDensity:
    """Return the distribution of a noise's sigma_cond over a schedule's training levels."""
    corruption = noise.build(schedule)
    law = corruption.law

    def law_time(ranks: list[float]) -> torch.Tensor:
        return corruption.time(schedule.level(torch.tensor(ranks, dtype=torch.float64))).double()

    every = law_time([(number + 0.5) / 200 for number in range(200)])
    mean = float(law.mean(every).double().mean())
    times = law_time(list(DENSITY_TIMES))
    if isinstance(law, ConstantNoise | VideoLevelNoise):
        values = law.mean(times).double().tolist()
        points = dict(zip(DENSITY_TIMES, values, strict=True))
        return NoiseDensity(points=points, grid=None, curves={}, mean=mean)
    low = float(law.quantile(torch.tensor(_OUTSIDE, dtype=torch.float64), times).min())
    high = float(law.quantile(torch.tensor(1 - _OUTSIDE, dtype=torch.float64), times).max())
    grid = torch.linspace(max(low, 1e-6), high, _POINTS, dtype=torch.float64)
    curves = {
        rank: np.asarray(law.pdf(grid, time.expand_as(grid)))
        for rank, time in zip(DENSITY_TIMES, times, strict=True)
    }
    return NoiseDensity(points={}, grid=np.asarray(grid), curves=curves, mean=mean)
