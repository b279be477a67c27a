"""From a conditioning image to a video: the sampling path of every model family.

    frames = generate(model, image, seed=0, start_time=0.94, analytic_init=statistics)

Sampling really starts at time M, which the model's schedule turns into sigma_M: the sigmas are
made anew from there down, and the first latents are drawn for that sigma, from the Analytic-Init
Gaussian or from N(0, sigma_M^2 I).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cil.analytic_init import AnalyticInit
from cil.errors import DataError
from cil.models.base import ImageToVideoModel
from cil.rng import Stream, normal
from cil.sampling import euler, karras_sigmas

__all__ = ["fit_image", "generate"]


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


@torch.no_grad()
def generate(
    model: ImageToVideoModel,
    image: Any,
    *,
    seed: int,
    num_videos: int = 1,
    start_time: float = 1.0,
    analytic_init: AnalyticInit | None = None,
    num_steps: int = 20,
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
        num_steps: Euler steps, >= 1.
        progress: called after each step with the number of steps done.

    Returns:
        (B, F, H, W, 3) uint8 RGB.

    Raises:
        ConfigError: a setting is out of range.
        DataError: the image or the statistics do not fit the model.
    """
    height, width = model.config.height, model.config.width
    sigma = model.schedule.start_level(start_time)
    sigmas = karras_sigmas(num_steps, sigma, model.schedule.sigma_min)
    noise = normal(
        model.latents_shape,
        seed=seed,
        sample_ids=range(num_videos),
        stream=Stream.INIT_NOISE,
        step=0,
    )
    if analytic_init is None:
        latents = sigma * noise
    else:
        if tuple(analytic_init.mean.shape) != model.latents_shape:
            raise DataError(
                f"the Analytic-Init statistics are for latents {tuple(analytic_init.mean.shape)}, "
                f"the model has {model.latents_shape}; estimate them on the model's own data set"
            )
        latents = analytic_init.draw(noise, alpha=1.0, sigma=sigma)
    device = next(model.network.parameters()).device
    condition = model.clean_condition(fit_image(image, height, width), num_clips=num_videos)
    condition = condition.to(device)
    latents = latents.to(device)
    model.network.eval()
    latents = euler(
        lambda noisy, level: model.denoise(noisy, level, condition),
        latents,
        sigmas,
        callback=lambda step, *_: progress(step + 1) if progress else None,
    )
    unscaled = latents.cpu() / model.first_stage.scaling_factor
    return torch.stack([model.first_stage.decode(video) for video in unscaled])
