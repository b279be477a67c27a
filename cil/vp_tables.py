"""Tables of variance-preserving noise schedules, by timestep, float64; each is made once."""

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

__all__ = ["BetaSchedule", "alphas_cumprod", "clean_scales"]

BetaSchedule = Literal["scaled_linear", "squaredcos_cap_v2"]
"""Names of diffusers."""

_LARGEST_BETA = 0.999
_COSINE_OFFSET = 0.008


@lru_cache(maxsize=16)
def alphas_cumprod(
    beta_schedule: BetaSchedule, beta_start: float, beta_end: float, count: int, zero_snr: bool
) -> Tensor:
    """Return the product of (1 - beta) up to each timestep, (count,).

    Args:
        beta_schedule: ``scaled_linear`` is linear in the square roots of the betas;
            ``squaredcos_cap_v2`` makes the product a squared cosine, with betas up to 0.999.
        beta_start: first beta of ``scaled_linear``.
        beta_end: last beta of ``scaled_linear``.
        count: number of timesteps.
        zero_snr: shift and scale the square roots of the product, so that the last one is 0.

    Source: squared cosine: Nichol and Dhariwal 2021, equation 17, arXiv 2102.09672; zero terminal
        SNR: Lin et al. 2023, algorithm 1, arXiv 2305.08891.
    """
    if beta_schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, count, dtype=torch.float64).square()
    else:
        edges = torch.arange(count + 1, dtype=torch.float64) / count
        angles = (edges + _COSINE_OFFSET) / (1.0 + _COSINE_OFFSET) * (math.pi / 2.0)
        wanted = angles.cos().square()
        betas = (1.0 - wanted[1:] / wanted[:-1]).clamp(max=_LARGEST_BETA)
    table = torch.cumprod(1.0 - betas, dim=0)
    if zero_snr:
        root = table.sqrt()
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        table = root.square()
    return table


@lru_cache(maxsize=16)
def clean_scales(base_scale: float, rescale_steps: int, count: int) -> Tensor:
    """Return the dynamic rescale of each timestep, (count,).

    Args:
        base_scale: factor from ``rescale_steps`` on.
        rescale_steps: timesteps over which it goes linearly from 1 there.
        count: number of timesteps.
    """
    ramp = torch.linspace(1.0, base_scale, rescale_steps, dtype=torch.float64)
    return torch.cat((ramp, ramp.new_full((count,), base_scale)))[:count]
