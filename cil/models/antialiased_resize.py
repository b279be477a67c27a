"""How Stable Video Diffusion and DynamiCrafter make a frame small enough for CLIP.

A Gaussian blur matched to the reduction, then bicubic sampling with the corners aligned. Both took
it from kornia 0.6 (``resize`` with ``antialias``), as did diffusers.
"""

import torch
from torch import Tensor
from torch.nn import functional

from cil.errors import DataError

__all__ = ["antialiased_resize"]


def antialiased_resize(images: Tensor, height: int, width: int) -> Tensor:
    """Resize images after a blur of standard deviation (reduction - 1) / 2 along each side.

    Args:
        images: (B, C, H, W) floating point. Values may overshoot their range slightly.
        height: rows wanted, >= 1.
        width: columns wanted, >= 1.

    Returns:
        (B, C, height, width), dtype and device of ``images``.

    Raises:
        DataError: images of less than two pixels along a side, which no blur fits on.
    """
    if images.ndim != 4 or min(images.shape[-2:]) < 2:
        raise DataError(
            f"images must be (B, C, H, W) of at least 2 x 2 pixels, got {tuple(images.shape)}"
        )
    for dim, size in ((-1, width), (-2, height)):
        images = _blur(images, dim, images.shape[dim] / size)
    return functional.interpolate(images, (height, width), mode="bicubic", align_corners=True)


def _blur(images: Tensor, dim: int, reduction: float) -> Tensor:
    """Blur along one side (-1 or -2), with the picture mirrored at its border."""
    sigma = max((reduction - 1.0) / 2.0, 0.001)
    radius = max(int(4.0 * sigma), 3) // 2
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).reshape([-1, 1] if dim == -2 else [1, -1])
    channels = images.shape[1]
    border = [radius, radius, 0, 0] if dim == -1 else [0, 0, radius, radius]
    return functional.conv2d(
        functional.pad(images, border, mode="reflect"),
        kernel.expand(channels, 1, *kernel.shape),
        groups=channels,
    )
