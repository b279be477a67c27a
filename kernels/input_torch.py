"""What the input kernels compute, in plain torch: the implementation on a CPU, and the reference.

Sums and products run in float32 and are rounded once, at the end, as the kernels do.
"""
# ruff: noqa: PLR0917

import torch
from torch import Tensor

from kernels import rng_torch

__all__ = ["corrupt", "draw_keep", "draw_sigma_cond", "empty_video", "training_input"]


def _append(values: Tensor, ndim: int) -> Tensor:
    return values.reshape(values.shape[0], *([1] * (ndim - 1)))


def empty_video(
    like: Tensor, size: tuple[int, ...], dtype: torch.dtype, channels_first: bool
) -> Tensor:
    """Return an empty (B, F, C, H, W) tensor, laid out as (B, C, F, H, W) if ``channels_first``."""
    if not channels_first:
        return like.new_empty(size, dtype=dtype)
    return like.new_empty((size[0], size[2], size[1], *size[3:]), dtype=dtype).transpose(1, 2)


def draw_sigma_cond(
    level: Tensor, key: Tensor, sample_ids: Tensor, logit: tuple[float, float] | None
) -> Tensor:
    """Return sigma_cond (B,): ``level`` itself, or beta_m * sigmoid(level + scale * normal)."""
    if logit is None:
        return level.clone()
    beta_m, scale = logit
    normal = rng_torch.normal((), key=key, sample_ids=sample_ids, stream=rng_torch.SIGMA_COND)
    return beta_m * torch.sigmoid(level + scale * normal)


def draw_keep(key: Tensor, sample_ids: Tensor, dropout: float) -> Tensor:
    """Return 1 (B,) where the condition is kept, 0 where it is dropped."""
    uniform = rng_torch.uniform(key=key, sample_ids=sample_ids, stream=rng_torch.DROPOUT)
    return (uniform >= dropout).to(torch.float32)


def training_input(
    clean: Tensor,
    cond: Tensor,
    scales: Tensor,
    level: Tensor,
    key: Tensor,
    sample_ids: Tensor,
    *,
    noise: str,
    logit: tuple[float, float] | None,
    dropout: float,
    dtype: torch.dtype,
    target_dtype: torch.dtype | None,
    channels_first: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Build the network's input and the target; arguments as ``input_triton.training_input``.

    Returns:
        Network input (B, F, 2C, H, W) of ``dtype``, target (B, F, C, H, W) of ``target_dtype`` or
        an empty tensor where that is None, sigma_cond (B,) and keep (B,).
    """
    shape = clean.shape[1:]
    sigma_cond = draw_sigma_cond(level, key, sample_ids, logit)
    keep = draw_keep(key, sample_ids, dropout)
    s = [_append(column, 5) for column in scales.unbind(1)]

    def normal(size: tuple[int, ...], stream: int) -> Tensor:
        return rng_torch.normal(size, key=key, sample_ids=sample_ids, stream=stream)

    eps = normal(tuple(shape), rng_torch.VIDEO_NOISE)
    x = clean.to(torch.float32)
    noisy = x * s[0] + eps * s[1]
    shown = cond.to(torch.float32) * s[4]
    if noise != "none":
        size = {"per_frame": tuple(shape), "shared": (1, *shape[1:]), "scalar": (1, 1, 1, 1)}[noise]
        shown = shown + normal(size, rng_torch.COND_NOISE) * _append(sigma_cond, 5)
    shown = torch.where(_append(keep, 5) > 0, shown, 0.0).expand_as(noisy)
    if target_dtype is None:
        target = clean.new_empty(0)
    else:
        target = empty_video(clean, tuple(clean.shape), target_dtype, channels_first)
        target.copy_(x * s[2] + eps * s[3])
    size = (shape[0], 2 * shape[1], *shape[2:])
    network_input = empty_video(clean, (clean.shape[0], *size), dtype, channels_first)
    network_input.copy_(torch.cat((noisy, shown), dim=2))
    return network_input, target, sigma_cond, keep


def corrupt(
    values: Tensor, sigma_cond: Tensor, keep: Tensor, key: Tensor, sample_ids: Tensor, stream: int
) -> Tensor:
    """Return values + sigma_cond * noise, zero where not kept; dtype and shape of ``values``."""
    noise = rng_torch.normal(values.shape[1:], key=key, sample_ids=sample_ids, stream=stream)
    shown = values.to(torch.float32) + noise * _append(sigma_cond, values.ndim)
    shown = torch.where(_append(keep, values.ndim) > 0, shown, 0.0)
    return shown.to(values.dtype)
