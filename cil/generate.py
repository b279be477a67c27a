"""From a conditioning image to a video: the sampling path of every model family.

    frames = generate(model, image, seed=0, start_time=0.94, analytic_init=statistics)

Sampling really starts at time M, which the model's schedule turns into a noise level: the levels
are made anew from there down, and the first latents are drawn for that level, from the
Analytic-Init Gaussian or from N(0, sigma_M^2 I). EDM models are sampled by Euler's method on
Karras' sigmas, VP models by DDIM, flow-matching models by Euler's method on shifted times.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cil.analytic_init import AnalyticInit
from cil.errors import ConfigError, DataError
from cil.models.base import Guidance, ImageToVideoModel
from cil.noise_schedule import EDMSchedule, FlowSchedule, VPSchedule
from cil.parameterization import Denoiser
from cil.rng import Stream, normal
from cil.sampling import (
    StepCallback,
    ddim,
    ddim_timesteps,
    euler,
    flow_times,
    karras_sigmas,
)

__all__ = ["fit_image", "generate", "generate_latents"]


def fit_image(image: Any, height: int, width: int) -> Tensor:
    """Resize an image so that it covers (height, width), and crop the centre.

    Args:
        image: (H, W, 3) uint8 RGB, a torch tensor or a numpy array.
        height: wanted height in pixels.
        width: wanted width in pixels.

    Returns:
        (height, width, 3) uint8.

    Raises:
        DataError: not such an image.
    """
    pixels = torch.as_tensor(image)
    if (
        pixels.ndim != 3
        or pixels.shape[2] != 3
        or pixels.dtype != torch.uint8
        or not pixels.numel()
    ):
        raise DataError(
            "the conditioning image must be (H, W, 3) uint8 RGB, got "
            f"{tuple(pixels.shape)} {pixels.dtype}; convert it, e.g. PIL.Image.convert('RGB')"
        )
    rows, columns = pixels.shape[:2]
    scale = max(height / rows, width / columns)
    size = (max(height, round(rows * scale)), max(width, round(columns * scale)))
    if size != (rows, columns):
        planes = pixels.permute(2, 0, 1)[None].float()
        planes = functional.interpolate(planes, size=size, mode="bilinear", antialias=True)
        pixels = planes[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return pixels[top : top + height, left : left + width].contiguous()


def generate(
    model: ImageToVideoModel,
    image: Any,
    *,
    seed: int,
    num_videos: int = 1,
    start_time: float = 1.0,
    analytic_init: AnalyticInit | None = None,
    num_steps: int = 20,
    guidance: Guidance | None = None,
    prompt: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Sample videos that start from an image, which the network sees without noise.

    The network computes where its weights are; the first stage on the CPU.

    Args:
        model: network, first stage and schedule.
        image: (H, W, 3) uint8 RGB of any size; resized to cover the model's size, then cropped.
        seed: of the start noise; video k of a seed does not depend on ``num_videos``.
        num_videos: B, videos to sample.
        start_time: M in (0, 1].
        analytic_init: statistics of the training latents, scaled; None starts from N(0, sigma^2 I).
        num_steps: steps of the sampler, >= 1.
        guidance: classifier-free guidance; None takes what the model's family has.
        prompt: caption, for families that are told one; None is the empty caption.
        progress: called after each step with the number of steps done.

    Returns:
        (B, F, H, W, 3) uint8 RGB.

    Raises:
        ConfigError: a setting is out of range.
        DataError: the image or the statistics do not fit the model.
    """
    latents = generate_latents(
        model,
        image,
        seed=seed,
        sample_ids=range(num_videos),
        start_time=start_time,
        analytic_init=analytic_init,
        num_steps=num_steps,
        guidance=guidance,
        prompt=prompt,
        progress=progress,
    )
    with torch.no_grad():
        return torch.stack([model.first_stage.decode(video) for video in latents])


@torch.no_grad()
def generate_latents(
    model: ImageToVideoModel,
    image: Any,
    *,
    seed: int,
    sample_ids: Sequence[int],
    start_time: float = 1.0,
    analytic_init: AnalyticInit | None = None,
    num_steps: int = 20,
    guidance: Guidance | None = None,
    prompt: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Sample as `generate` does, up to the first stage's decoder.

    Args:
        model: network, first stage and schedule.
        image: as in `generate`.
        seed: of the start noise.
        sample_ids: B numbers that choose the noise within a seed; `generate` has 0, 1, ...
        start_time: M in (0, 1].
        analytic_init: as in `generate`.
        num_steps: steps of the sampler, >= 1.
        guidance: as in `generate`.
        prompt: as in `generate`.
        progress: called after each step with the number of steps done.

    Returns:
        (B, F, C, h, w) float32 on the CPU, unscaled, as the first stage decodes them; not finite
        where the network's output is not.

    Raises:
        ConfigError: a setting is out of range.
        DataError: the image or the statistics do not fit the model.
    """
    height, width = model.config.height, model.config.width
    level = model.schedule.start_level(start_time)
    noise = normal(
        model.latents_shape,
        seed=seed,
        sample_ids=sample_ids,
        stream=Stream.INIT_NOISE,
        step=0,
    )
    latents = _first_latents(model, noise, level, analytic_init)
    device = next(model.network.parameters()).device
    picture = fit_image(image, height, width)
    condition = model.clean_condition(picture, num_clips=len(sample_ids), prompt=prompt)
    condition = condition.to(device)
    model.network.eval()
    latents = _sampled(
        model,
        lambda noisy, at: model.denoise(
            noisy, at, condition, guidance=model.guidance if guidance is None else guidance
        ),
        latents.to(device),
        level=level,
        num_steps=num_steps,
        callback=lambda step, *_: progress(step + 1) if progress else None,
    )
    return latents.cpu() / model.first_stage.scaling_factor


def _first_latents(
    model: ImageToVideoModel, noise: Tensor, level: float, statistics: AnalyticInit | None
) -> Tensor:
    """Turn standard normal noise into noisy latents at the start level.

    Statistics are of latents before the dynamic rescale, which multiplies those of the model.
    """
    if statistics is not None and tuple(statistics.mean.shape) != model.latents_shape:
        raise DataError(
            f"the Analytic-Init statistics are for latents {tuple(statistics.mean.shape)}, "
            f"the model has {model.latents_shape}; estimate them on the model's own data set"
        )
    start = torch.tensor([level], dtype=torch.float64)
    alpha, sigma = (float(value) for value in model.schedule.scales(start))
    if statistics is None:
        return sigma * noise
    scale = float(model.schedule.clean_scale(start))
    return statistics.draw(noise, alpha=alpha * scale, sigma=sigma)


def _sampled(
    model: ImageToVideoModel,
    denoiser: Denoiser,
    latents: Tensor,
    *,
    level: float,
    num_steps: int,
    callback: StepCallback,
) -> Tensor:
    """Run the sampler of the model's schedule from a start level down."""
    schedule = model.schedule
    if isinstance(schedule, EDMSchedule):
        sigmas = karras_sigmas(num_steps, level, schedule.sigma_min)
        return euler(denoiser, latents, sigmas, callback=callback)
    if isinstance(schedule, VPSchedule):
        start = int(level) + 1
        timesteps = ddim_timesteps(
            min(num_steps, start), start, num_train_timesteps=schedule.num_train_timesteps
        )
        return ddim(denoiser, latents, timesteps, schedule=schedule, callback=callback)
    if isinstance(schedule, FlowSchedule):
        times = flow_times(num_steps, level, schedule.shift)
        return euler(denoiser, latents, times, callback=callback)
    raise ConfigError(
        f"there is no sampler here for {type(schedule).__name__}; use EDM, VP or flow"
    )
