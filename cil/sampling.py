"""Samplers over one interface: ``denoised = denoiser(noisy (B, F, C, H, W), level (B,))``.

Each visits exactly the levels that it is given, so that a start time M before the end of the
schedule is real: draw the first latents for the first level (`AnalyticInit.start`, or alpha 0 and
sigma * noise).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from cil.errors import DataError
from cil.noise_schedule import KARRAS_RHO, VPSchedule, require
from cil.parameterization import Denoiser
from cil.shapes import check_finite, check_shape

__all__ = [
    "Spacing",
    "StepCallback",
    "StepNoise",
    "ddim",
    "ddim_timesteps",
    "euler",
    "flow_times",
    "karras_sigmas",
]

StepCallback = Callable[[int, Tensor, Tensor], None]
"""callback(step, latents after the step, denoised of the step), for progress and inspection."""

StepNoise = Callable[[int], Tensor]
"""noise (B, F, C, H, W) = noise(step), standard normal, for samplers that add some."""

Spacing = Literal["uniform", "uniform_trailing"]
"""Names of DynamiCrafter's code; diffusers' ``leading`` (offset 1) and ``trailing``."""


def karras_sigmas(
    num_steps: int, sigma_max: float, sigma_min: float = 0.002, rho: float = KARRAS_RHO
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
    wanted = f"> sigma_min = {sigma_min}"
    require(sigma_max > sigma_min, "sigma_max", wanted, sigma_max, "choose a later start")
    require(rho > 0, "rho", "> 0", rho, "7 is usual")
    ramp = torch.linspace(0.0, 1.0, num_steps, dtype=torch.float64)
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return torch.cat((sigmas, sigmas.new_zeros(1))).to(torch.float32)


def flow_times(num_steps: int, start: float = 1.0, shift: float = 1.0) -> Tensor:
    """Return the t that a flow-matching sampler visits, even before the shift.

    Args:
        num_steps: number of steps, >= 1.
        start: first t after the shift, where sampling starts (the paper's M), in (0, 1].
        shift: t -> shift * t / (1 + (shift - 1) * t), > 0.

    Returns:
        (num_steps + 1,) float32, decreasing from ``start`` to 0.

    Raises:
        ConfigError: a value is out of its range.

    Source: Esser et al. 2024, equation 23, arXiv 2403.03206.
    """
    require(num_steps >= 1, "num_steps", ">= 1", num_steps, "25 to 50 are usual")
    require(0.0 < start <= 1.0, "start", "in (0, 1]", start, "1 starts from pure noise")
    require(shift > 0, "shift", "> 0", shift, "Wan has 3 to 5, 1 is off")
    unshifted = start / (shift - (shift - 1.0) * start)
    t = torch.linspace(unshifted, 0.0, num_steps + 1, dtype=torch.float64)
    return (shift * t / (1.0 + (shift - 1.0) * t)).to(torch.float32)


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
        sigmas: (S + 1,) decreasing, >= 0, of `karras_sigmas` or `flow_times`.
        callback: called after each step with (step, latents, denoised).

    Returns:
        (B, F, C, H, W) latents at ``sigmas[-1]``, dtype of ``latents``.

    Raises:
        ConfigError: sigmas that do not decrease, or a negative one.
        DataError: latents with another number of dimensions.

    Source: Karras et al. 2022, algorithm 1 without the second-order correction; for flow matching
        Lipman et al. 2023, arXiv 2210.02747.
    """
    check_shape("latents", latents, "B F C H W")
    check_finite("latents", latents)
    levels = torch.as_tensor(sigmas, dtype=torch.float64).tolist()
    decreasing = all(a > b for a, b in itertools.pairwise(levels))
    require(
        len(levels) > 1 and decreasing and levels[-1] >= 0,
        "sigmas",
        "at least two, decreasing and >= 0",
        levels,
        "use cil.karras_sigmas or cil.flow_times",
    )
    # A level in half precision would be another level.
    level_dtype = torch.promote_types(latents.dtype, torch.float32)
    for step, (sigma, following) in enumerate(itertools.pairwise(levels)):
        level = latents.new_full((latents.shape[0],), sigma, dtype=level_dtype)
        denoised = denoiser(latents, level)
        if denoised.shape != latents.shape:
            raise DataError(
                f"the denoiser must return {tuple(latents.shape)}, got {tuple(denoised.shape)}; "
                "check what the network returns"
            )
        latents = latents + (latents - denoised) * ((following - sigma) / sigma)
        if callback is not None:
            callback(step, latents, denoised)
    return latents


def ddim_timesteps(
    num_steps: int,
    start: int = 1000,
    spacing: Spacing = "uniform_trailing",
    num_train_timesteps: int = 1000,
) -> Tensor:
    """Return the timesteps that DDIM visits, rebuilt over [0, start).

    Args:
        num_steps: number of steps, in [1, start].
        start: the paper's M, in [1, num_train_timesteps].
        spacing: ``uniform_trailing`` starts exactly at M - 1 and has ``num_steps`` steps.
            ``uniform`` is every (M // num_steps)-th timestep plus 1, as the released code has it:
            it starts somewhat below M and may give more steps (53 for M = 940 and 50).
        num_train_timesteps: of the schedule.

    Returns:
        int64, decreasing, in the order visited.

    Raises:
        ConfigError: a value is out of its range.

    Source: released DynamiCrafter code; Lin et al. 2023, table 2, arXiv 2305.08891 (trailing).
    """
    wanted = f"in [1, {num_train_timesteps}], the schedule's timesteps"
    require(1 <= start <= num_train_timesteps, "start", wanted, start, "940 is usual, 1000 is all")
    require(1 <= num_steps <= start, "num_steps", f"in [1, {start}]", num_steps, "50 is usual")
    known = get_args(Spacing)
    require(spacing in known, "spacing", f"one of {known}", spacing, "DynamiCrafter has the latter")
    if spacing == "uniform":
        steps = torch.arange(0, start, start // num_steps) + 1
        # For M = num_train_timesteps = num_steps the last one would leave the schedule.
        return steps[steps < num_train_timesteps].flip(0)
    stride = start / num_steps
    count = torch.arange(num_steps, dtype=torch.float64)
    return torch.round(start - count * stride).long() - 1


def ddim(
    denoiser: Denoiser,
    latents: Tensor,
    timesteps: Tensor | Sequence[int],
    *,
    schedule: VPSchedule,
    eta: float = 0.0,
    noise: StepNoise | None = None,
    rescale_last: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """Sample a VP model with DDIM, over any decreasing timesteps.

    The last step goes to timestep 0, not to clean latents, as Stable Diffusion's settings do. With
    dynamic rescale, denoised latents are moved from the scale of a timestep to that of the next.

    Args:
        denoiser: denoised = denoiser(noisy (B, F, C, H, W), timesteps (B,) int64).
        latents: (B, F, C, H, W) noisy latents at ``timesteps[0]``.
        timesteps: decreasing, of `ddim_timesteps`.
        schedule: VP schedule.
        eta: share of the variance that is noise, in [0, 1]: 0 is deterministic, 1 as DDPM.
        noise: gives the noise of each step; needed where ``eta`` > 0.
        rescale_last: move the last denoised latents to the scale of timestep 0, as VideoCrafter
            does; DynamiCrafter leaves them.
        callback: called after each step with (step, latents, denoised); denoised is in the scale of
            the next timestep.

    Returns:
        (B, F, C, H, W) latents at timestep 0, dtype of ``latents``.

    Raises:
        ConfigError: timesteps outside the schedule or not decreasing, eta outside [0, 1], or no
            noise for eta > 0.
        DataError: latents with another number of dimensions.

    Source: Song et al. 2020, equation 12 and 16, arXiv 2010.02502.
    """
    check_shape("latents", latents, "B F C H W")
    check_finite("latents", latents)
    visited = torch.as_tensor(timesteps).tolist()
    last = schedule.num_train_timesteps - 1
    require(
        len(visited) > 0
        and all(a > b for a, b in itertools.pairwise(visited))
        and 0 <= visited[-1] <= visited[0] <= last,
        "timesteps",
        f"decreasing in [0, {last}]",
        visited,
        "use cil.ddim_timesteps",
    )
    require(0.0 <= eta <= 1.0, "eta", "in [0, 1]", eta, "0 is deterministic")
    require(eta == 0.0 or noise is not None, "noise", "given for eta > 0", noise, "set eta=0")
    table, clean_scales = schedule.alphas_cumprod.tolist(), schedule.clean_scales.tolist()
    for step, (timestep, following) in enumerate(itertools.pairwise([*visited, 0])):
        a, a_next = table[timestep], table[following]
        level = torch.full((latents.shape[0],), timestep, device=latents.device)
        denoised = denoiser(latents, level)
        if denoised.shape != latents.shape:
            raise DataError(
                f"the denoiser must return {tuple(latents.shape)}, got {tuple(denoised.shape)}; "
                "check what the network returns"
            )
        epsilon = (latents - a**0.5 * denoised) / (1.0 - a) ** 0.5
        if rescale_last or step + 1 < len(visited):
            denoised = denoised * (clean_scales[following] / clean_scales[timestep])
        # max: at timestep 0 -> 0 the variance is 0, and rounding must not make it negative.
        variance = eta**2 * max((1.0 - a_next) / (1.0 - a) * (1.0 - a / a_next), 0.0)
        direction = max(1.0 - a_next - variance, 0.0) ** 0.5
        latents = a_next**0.5 * denoised + direction * epsilon
        if variance > 0.0 and noise is not None:
            latents = latents + variance**0.5 * noise(step).to(latents.dtype)
        if callback is not None:
            callback(step, latents, denoised)
    return latents
