"""Samplers over one interface: ``denoised = denoiser(noisy (B, F, C, H, W), level (B,))``.

Each starts where its list of levels starts, with latents drawn for that level (`AnalyticInit.draw`,
or sigma * noise), so that a start time M before the end of the schedule is real.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cil.noise_schedule import require
from cil.parameterization import Denoiser
from cil.shapes import check_shape

__all__ = ["StepCallback", "euler", "karras_sigmas"]

StepCallback = Callable[[int, Tensor, Tensor], None]
"""callback(step, latents after the step, denoised of the step), for progress and inspection."""


def karras_sigmas(
    num_steps: int, sigma_max: float, sigma_min: float = 0.002, rho: float = 7.0
) -> Tensor:
    """Return the sigmas that a sampler visits, evenly spaced in sigma^(1 / rho).

    Args:
        num_steps: number of steps, >= 1.
        sigma_max: first sigma, where sampling starts (the paper's M), > sigma_min.
        sigma_min: last sigma before 0, > 0.
        rho: exponent, > 0; 7 spends most steps at small sigmas.

    Returns:
        (num_steps + 1,) float32, decreasing, the last one 0. One step goes from sigma_max to 0.

    Raises:
        ConfigError: a value is out of its range.

    Source: Karras et al. 2022, equation 5, arXiv 2206.00364.
    """
    require(num_steps >= 1, "num_steps", ">= 1", num_steps, "25 is usual")
    require(sigma_min > 0, "sigma_min", "> 0", sigma_min, "SVD has 0.002")
    require(
        sigma_max > sigma_min,
        "sigma_max",
        f"> sigma_min = {sigma_min}",
        sigma_max,
        "choose a later start",
    )
    require(rho > 0, "rho", "> 0", rho, "7 is usual")
    ramp = torch.linspace(0.0, 1.0, num_steps, dtype=torch.float64)
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return torch.cat((sigmas, sigmas.new_zeros(1))).to(torch.float32)


def euler(
    denoiser: Denoiser,
    latents: Tensor,
    sigmas: Tensor | Sequence[float],
    *,
    callback: StepCallback | None = None,
) -> Tensor:
    """Follow d latents / d sigma = (latents - denoised) / sigma with Euler steps.

    Right for EDM, where noisy = clean + sigma * noise, and for flow matching with t in place of
    sigma, where noisy = (1 - t) * clean + t * noise: the slope is the same formula.

    Args:
        denoiser: denoised = denoiser(noisy (B, F, C, H, W), sigma (B,)).
        latents: (B, F, C, H, W) noisy latents at ``sigmas[0]``.
        sigmas: (S + 1,) decreasing, >= 0, for example of `karras_sigmas`.
        callback: called after each step with (step, latents, denoised).

    Returns:
        (B, F, C, H, W) latents at ``sigmas[-1]``, dtype of ``latents``.

    Raises:
        ConfigError: sigmas that do not decrease, or a negative one.
        DataError: latents with another number of dimensions.

    Source: Karras et al. 2022, algorithm 1 without the second-order correction.
    """
    check_shape("latents", latents, "B F C H W")
    levels = torch.as_tensor(sigmas, dtype=torch.float64).tolist()
    decreasing = all(a > b for a, b in itertools.pairwise(levels))
    require(
        len(levels) > 1 and decreasing and levels[-1] >= 0,
        "sigmas",
        "at least two, decreasing and >= 0",
        levels,
        "use cil.karras_sigmas",
    )
    for step, (sigma, following) in enumerate(itertools.pairwise(levels)):
        level = latents.new_full((latents.shape[0],), sigma)
        denoised = denoiser(latents, level)
        latents = latents + (latents - denoised) * ((following - sigma) / sigma)
        if callback is not None:
            callback(step, latents, denoised)
    return latents
