"""What a sampler may do with the condition: classifier-free guidance, and a low-pass filter on it.

Both are switches at inference that need no training. Adaptive low-pass guidance (ALG) is here to be
compared with TimeNoise and Analytic-Init: it blurs the conditioning image while the noise is
strong.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cil.noise_schedule import require
from cil.shapes import append_dims, check_shape

__all__ = ["LowPass", "frame_guidance_scale", "guide"]


def frame_guidance_scale(first: float, last: float, num_frames: int) -> Tensor:
    """Return a guidance scale that goes linearly over frames, as SVD's sampler does (1 to 3).

    Args:
        first: guidance scale of the first frame, >= 0; 1 is off.
        last: guidance scale of the last frame, >= 0.
        num_frames: number of frames, >= 1.

    Returns:
        (F,) float32.

    Raises:
        ConfigError: a value is out of its range.
    """
    require(num_frames >= 1, "num_frames", ">= 1", num_frames, "SVD has 14 or 25")
    scales = (first, last)
    require(min(scales) >= 0, "guidance_scale", ">= 0", scales, "1 turns guidance off")
    return torch.linspace(first, last, num_frames)


def guide(
    conditional: Tensor,
    unconditional: Tensor,
    guidance_scale: Tensor | float,
    *,
    rescale: float = 0.0,
) -> Tensor:
    """Extrapolate from the unconditional prediction through the conditional one.

    Args:
        conditional: (B, F, C, H, W) prediction (or denoised latents) with the condition.
        unconditional: (B, F, C, H, W) without it.
        guidance_scale: one number, or (F,) one for each frame; 1 is off.
        rescale: share in [0, 1] of guidance rescale: the result's standard deviation is pulled to
            that of ``conditional``. Depends on what is guided, so guide the prediction.

    Returns:
        (B, F, C, H, W), dtype of ``conditional``.

    Raises:
        ConfigError: ``rescale`` outside [0, 1].
        DataError: a guidance scale for another number of frames.

    Source: Ho and Salimans 2022, equation 6, arXiv 2207.12598; rescale: Lin et al. 2023, section
        3.4, equations 15 and 16, arXiv 2305.08891.
    """
    advice = "DynamiCrafter has 0.7, 0 is off"
    require(0.0 <= rescale <= 1.0, "guidance rescale", "in [0, 1]", rescale, advice)
    scale = torch.as_tensor(guidance_scale, dtype=torch.float32, device=conditional.device)
    if scale.ndim:
        check_shape("guidance_scale", scale, "F", F=conditional.shape[1])
        scale = append_dims(scale, conditional.ndim - 1)
    guided = unconditional + scale * (conditional - unconditional)
    if rescale > 0.0:
        axes = tuple(range(1, conditional.ndim))
        ratio = conditional.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
        guided = guided * (rescale * ratio + (1.0 - rescale))
    return guided.to(conditional.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class LowPass:
    """Adaptive low-pass guidance: blur the condition while the noise is strong, then not at all.

    The filter shrinks and enlarges again, both bilinear with antialiasing. Of the published
    settings, Wan 2.1 has factor 0.4 for the first 20 % of the steps, CogVideoX 0.25 for the first
    4 %. Encode the filtered image again where an encoder is at hand; filtering the conditioning
    latents is the cheap variant.

    Source: Choi et al. 2025, "Enhancing Motion Dynamics of Image-to-Video Models via Adaptive
        Low-Pass Guidance", arXiv 2506.08456.
    """

    factor: float = 0.4
    """Size of the small image in units of the full one, in (0, 1]; 1 is off."""
    share: float = 0.2
    """Share of the sampler's steps that get the filtered condition, in [0, 1]; 0 is off."""

    def __post_init__(self) -> None:
        advice = "Wan 2.1 has factor 0.4 and share 0.2"
        require(0.0 < self.factor <= 1.0, "factor", "in (0, 1]", self.factor, advice)
        require(0.0 <= self.share <= 1.0, "share", "in [0, 1]", self.share, advice)

    def active(self, step: int, num_steps: int) -> bool:
        """Say whether step 0 <= ``step`` < ``num_steps`` gets the filtered condition."""
        return step < round(self.share * num_steps)

    def threshold(self, levels: Tensor) -> float:
        """Return the level at and above which a denoiser should use the filtered condition.

        Args:
            levels: (S + 1,) decreasing levels of a sampler whose last is never visited (Karras
                sigmas, flow times), or (S,) DDIM timesteps with another value appended.

        Returns:
            A level; infinity where no step is filtered.
        """
        filtered = round(self.share * (len(levels) - 1))
        return float(levels[filtered - 1]) if filtered else float("inf")

    def apply(self, images: Tensor) -> Tensor:
        """Filter images.

        Args:
            images: (..., C, H, W) pixels or conditioning latents, with or without frames.

        Returns:
            Shape and dtype of ``images``.
        """
        if self.factor == 1.0:
            return images
        *lead, channels, height, width = images.shape
        small = (max(1, round(height * self.factor)), max(1, round(width * self.factor)))
        flat = images.reshape(-1, channels, height, width).float()
        shrunk = functional.interpolate(flat, small, mode="bilinear", antialias=True)
        full = functional.interpolate(shrunk, (height, width), mode="bilinear", antialias=True)
        return full.reshape(*lead, channels, height, width).to(images.dtype)
