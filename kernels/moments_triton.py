"""The kernel of the moments of clean latents at each position, and how it is launched.

One pass over a batch: sums of differences from the batch's first clip, float64, then Chan's merge
with what was there before. The difference from a clip that is itself in the batch loses at most a
factor N + 1 of the precision: N (mean - first)^2 <= N * m2.

Source: Chan, Golub, LeVeque 1979.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, PLR0917

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import launch_options

__all__ = ["MAX_CLIPS", "moments_kernel", "update_moments"]

MAX_CLIPS = 64
"""Clips per launch; more are taken in turns. Each number of clips is compiled once."""


@triton.jit
def moments_kernel(
    count_ptr,
    mean_ptr,
    m2_ptr,
    latents_ptr,
    std_ptr,
    new_count_ptr,
    new_mean_ptr,
    new_m2_ptr,
    size,
    latents_n,
    std_n,
    CLIPS: tl.constexpr,
    STD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add CLIPS clips to the moments of BLOCK positions."""
    s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = s < size
    base = tl.load(latents_ptr + s, mask=inside, other=0.0).to(tl.float64)
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    squares = tl.zeros((BLOCK,), dtype=tl.float64)
    spread = tl.zeros((BLOCK,), dtype=tl.float64)
    latents_at = latents_ptr + s
    std_at = std_ptr + s
    for _ in range(CLIPS):
        value = tl.load(latents_at, mask=inside, other=0.0).to(tl.float64) - base
        total += value
        squares += value * value
        if STD:
            std = tl.load(std_at, mask=inside, other=0.0).to(tl.float64)
            spread += std * std
        latents_at += latents_n
        std_at += std_n
    clips = tl.full((BLOCK,), CLIPS, dtype=tl.float64)
    shift = total / clips
    m2 = squares - shift * total
    m2 = tl.where(m2 < 0.0, 0.0, m2) + spread  # NaN stays NaN

    old = tl.load(count_ptr)
    before = tl.zeros((BLOCK,), dtype=tl.float64) + old.to(tl.float64)
    mean = tl.load(mean_ptr + s, mask=inside, other=0.0)
    delta = base + shift - mean
    part = clips / (before + clips)
    tl.store(new_mean_ptr + s, mean + delta * part, mask=inside)
    old_m2 = tl.load(m2_ptr + s, mask=inside, other=0.0)
    tl.store(new_m2_ptr + s, old_m2 + m2 + delta * delta * (before * part), mask=inside)
    if tl.program_id(0) == 0:
        tl.store(new_count_ptr, old + CLIPS)


def update_moments(
    count: Tensor, mean: Tensor, m2: Tensor, latents: Tensor, std: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Add clips to moments.

    Args:
        count: () int64, clips so far.
        mean: (F, C, H, W) float64 contiguous, mean so far; 0 for no clips.
        m2: (F, C, H, W) float64 contiguous, sum of squared differences so far.
        latents: (N, F, C, H, W), each clip contiguous.
        std: (N, F, C, H, W) posteriors' standard deviations, each clip contiguous, or None.

    Returns:
        New count, mean and m2.
    """
    size = mean.numel()
    for first in range(0, latents.shape[0] if size else 0, MAX_CLIPS):
        part = latents[first : first + MAX_CLIPS]
        spread = part if std is None else std[first : first + MAX_CLIPS]
        new = torch.empty_like(count), torch.empty_like(mean), torch.empty_like(m2)
        with torch.cuda.device_of(mean):
            moments_kernel[(triton.cdiv(size, 256),)](
                count,
                mean,
                m2,
                part,
                spread,
                *new,
                size,
                part.stride(0),
                spread.stride(0),
                CLIPS=part.shape[0],
                STD=std is not None,
                BLOCK=256,
                **launch_options(4),
            )
        count, mean, m2 = new
    return count.clone(), mean.clone(), m2.clone()
