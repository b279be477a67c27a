"""The kernels that build the network's input, and how they are launched.

`training_input_kernel` handles one run of BLOCK positions of one channel, for a chunk of frames of
one clip: it reads clean and conditioning latents once, draws every random number in registers, and
writes the network's input, the target, sigma_cond and keep. `corrupt_kernel` noises any tensor.

The grid is (runs * channels * frame chunks, clips). Offsets between clips are int64; offsets inside
a clip are int32, which the public functions check. Everything is float32 between load and store.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202, PLR0915, PLR0917, SIM108

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.input_torch import empty_video
from kernels.launch import (
    Tuning,
    is_flat,
    is_half,
    is_nvidia,
    launch_options,
    tune,
    warp_size_of,
)
from kernels.rng_triton import key_words, normal_block, normal_number, uniform_number

__all__ = ["NOISE_CODES", "corrupt", "corrupt_kernel", "training_input", "training_input_kernel"]

NOISE_CODES = {"none": 0, "shared": 1, "per_frame": 2, "scalar": 3}
_NONE = tl.constexpr(0)
_SHARED = tl.constexpr(1)
_PER_FRAME = tl.constexpr(2)
_SCALAR = tl.constexpr(3)

# cil.rng.Stream
_VIDEO_NOISE = tl.constexpr(0)
_COND_NOISE = tl.constexpr(1)
_SIGMA_COND = tl.constexpr(3)
_DROPOUT = tl.constexpr(4)


@triton.jit
def _level(
    level_ptr,
    b,
    sample,
    step,
    k0,
    k1,
    beta_m,
    logit_scale,
    DRAW: tl.constexpr,
    APPROX: tl.constexpr,
):
    """Return sigma_cond: as given, or beta_m * sigmoid(mean of the logit + scale * normal)."""
    level = tl.load(level_ptr + b)
    if DRAW:
        n = normal_number(sample, _SIGMA_COND, step, k0, k1, APPROX)
        return beta_m * tl.sigmoid(tl.fma(n, logit_scale, level))
    return level


@triton.jit
def training_input_kernel(
    clean_ptr,
    cond_ptr,
    input_ptr,
    target_ptr,
    sigma_cond_ptr,
    keep_ptr,
    scales_ptr,
    level_ptr,
    key_ptr,
    ids_ptr,
    beta_m,
    logit_scale,
    dropout,
    frames,
    channels,
    width,
    spatial,
    clean_b,
    clean_f,
    clean_c,
    clean_h,
    clean_w,
    cond_b,
    cond_f,
    cond_c,
    cond_h,
    cond_w,
    input_b,
    input_f,
    input_c,
    target_b,
    target_f,
    target_c,
    NOISE: tl.constexpr,
    DRAW_LEVEL: tl.constexpr,
    TARGET: tl.constexpr,
    REPEAT: tl.constexpr,
    FLAT: tl.constexpr,
    FRAMES: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    APPROX: tl.constexpr,
):
    """Build the input of FRAMES frames of BLOCK positions of one channel; see the module.

    REPEAT: the condition is one image, read once. FLAT: height and width of both inputs are one
    run of memory (clean_w apart), so that no index is divided.
    """
    b = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0)
    runs = tl.cdiv(spatial, BLOCK)
    first = (place % runs) * BLOCK
    rest = place // runs
    c = rest % channels
    f0 = (rest // channels) * FRAMES

    sample = tl.load(ids_ptr + b).to(tl.uint32)
    k0, k1, step = key_words(key_ptr)
    sigma_cond = _level(level_ptr, b, sample, step, k0, k1, beta_m, logit_scale, DRAW_LEVEL, APPROX)
    keep = uniform_number(sample, _DROPOUT, step, k0, k1) >= dropout
    if place == 0:
        tl.store(sigma_cond_ptr + b, sigma_cond)
        tl.store(keep_ptr + b, keep.to(tl.float32))
    noisy_clean = tl.load(scales_ptr + b * 5)
    noisy_noise = tl.load(scales_ptr + b * 5 + 1)
    target_clean = tl.load(scales_ptr + b * 5 + 2)
    target_noise = tl.load(scales_ptr + b * 5 + 3)
    cond_scale = tl.load(scales_ptr + b * 5 + 4)

    s = first + tl.arange(0, BLOCK)
    inside = s < spatial
    if FLAT:
        clean_s = s * clean_w
        cond_s = s * cond_w
    else:
        clean_s = (s // width) * clean_h + (s % width) * clean_w
        cond_s = (s // width) * cond_h + (s % width) * cond_w
    clean_at = clean_ptr + b * clean_b + c * clean_c + clean_s
    cond_at = cond_ptr + b * cond_b + c * cond_c + cond_s
    noisy_at = input_ptr + b * input_b + c * input_c + s
    shown_at = input_ptr + b * input_b + (channels + c) * input_c + s
    target_at = target_ptr + b * target_b + c * target_c + s

    if REPEAT:
        cond = tl.load(cond_at, mask=inside, other=0.0).to(tl.float32) * cond_scale
    if NOISE == _SHARED:
        noise = normal_block(
            c * spatial + first, sample, _COND_NOISE, step, k0, k1, BLOCK, LANES, APPROX
        )
    if NOISE == _SCALAR:
        number = normal_number(sample, _COND_NOISE, step, k0, k1, APPROX)
        noise = tl.zeros((BLOCK,), dtype=tl.float32) + number

    for i in range(FRAMES):
        f = f0 + i
        valid = inside & (f < frames)
        start = (f * channels + c) * spatial + first
        clean = tl.load(clean_at + f * clean_f, mask=valid, other=0.0).to(tl.float32)
        eps = normal_block(start, sample, _VIDEO_NOISE, step, k0, k1, BLOCK, LANES, APPROX)
        noisy = tl.fma(eps, noisy_noise, clean * noisy_clean)
        tl.store(noisy_at + f * input_f, noisy.to(input_ptr.dtype.element_ty), mask=valid)
        if TARGET:
            target = tl.fma(eps, target_noise, clean * target_clean)
            tl.store(target_at + f * target_f, target.to(target_ptr.dtype.element_ty), mask=valid)
        if not REPEAT:
            cond = tl.load(cond_at + f * cond_f, mask=valid, other=0.0).to(tl.float32)
            cond = cond * cond_scale
        if NOISE == _PER_FRAME:
            noise = normal_block(start, sample, _COND_NOISE, step, k0, k1, BLOCK, LANES, APPROX)
        shown = cond
        if NOISE != _NONE:
            shown = tl.fma(noise, sigma_cond, cond)
        shown = tl.where(keep, shown, 0.0)  # zero even where the condition is not finite
        tl.store(shown_at + f * input_f, shown.to(input_ptr.dtype.element_ty), mask=valid)


@triton.jit
def corrupt_kernel(
    values_ptr,
    out_ptr,
    sigma_cond_ptr,
    keep_ptr,
    key_ptr,
    ids_ptr,
    count,
    width,
    values_b,
    values_r,
    values_w,
    STREAM: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    APPROX: tl.constexpr,
):
    """Write values + sigma_cond * noise of BLOCK elements of one sample, zero where dropped."""
    b = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK
    sample = tl.load(ids_ptr + b).to(tl.uint32)
    k0, k1, step = key_words(key_ptr)
    sigma_cond = tl.load(sigma_cond_ptr + b)
    keep = tl.load(keep_ptr + b) > 0
    s = first + tl.arange(0, BLOCK)
    inside = s < count
    if FLAT:
        offset = s * values_w
    else:
        offset = (s // width) * values_r + (s % width) * values_w
    values = tl.load(values_ptr + b * values_b + offset, mask=inside, other=0.0).to(tl.float32)
    noise = normal_block(first, sample, STREAM, step, k0, k1, BLOCK, LANES, APPROX)
    shown = tl.where(keep, tl.fma(noise, sigma_cond, values), 0.0)
    out_at = out_ptr + b * count + s
    tl.store(out_at, shown.to(out_ptr.dtype.element_ty), mask=inside)


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
    tuning: Tuning | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Build the network's input and the target with `training_input_kernel`.

    Args:
        clean: (B, F, C, H, W), any strides.
        cond: (B, 1 or F, C, H, W), any strides.
        scales: (B, 5) float32 contiguous: noisy = s0 clean + s1 noise, target = s2 clean +
            s3 noise, shown = s4 cond + sigma_cond noise.
        level: (B,) float32 contiguous: sigma_cond, or the mean of its logit.
        key: (2,) int64 seed and step.
        sample_ids: (B,) int64 contiguous.
        noise: none, shared, per_frame or scalar.
        logit: (beta_m, scale) to draw sigma_cond, None if ``level`` is sigma_cond.
        dropout: probability of dropping the condition.
        dtype: of the network's input.
        target_dtype: of the target; None for no target.
        channels_first: lay the outputs out in memory as (B, C, F, H, W).
        tuning: launch parameters, for tests.

    Returns:
        As ``input_torch.training_input``.
    """
    batch, frames, channels, height, width = clean.shape
    network_input = empty_video(
        clean, (batch, frames, 2 * channels, height, width), dtype, channels_first
    )
    target = clean.new_empty(0)
    if target_dtype is not None:
        target = empty_video(clean, tuple(clean.shape), target_dtype, channels_first)
    sigma_cond, keep = torch.empty_like(level), torch.empty_like(level)
    if batch == 0:
        return network_input, target, sigma_cond, keep
    tuning = tuning or tune(
        spatial=height * width,
        rows=batch * channels,
        frames=frames,
        half=is_half(dtype, target_dtype),
        nvidia=is_nvidia(clean),
        warp_size=warp_size_of(clean),
    )
    repeat = cond.shape[1] == 1 or cond.stride(1) == 0
    beta_m, scale = logit or (0.0, 0.0)
    runs = triton.cdiv(height * width, tuning.block)
    programs = runs * channels * triton.cdiv(frames, tuning.frames)
    with torch.cuda.device_of(clean):
        training_input_kernel[(programs, batch)](
            clean,
            cond,
            network_input,
            target,
            sigma_cond,
            keep,
            scales,
            level,
            key,
            sample_ids,
            beta_m,
            scale,
            dropout,
            frames,
            channels,
            width,
            height * width,
            *clean.stride(),
            cond.stride(0),
            0 if repeat else cond.stride(1),
            *cond.stride()[2:],
            *network_input.stride()[:3],
            *(target.stride()[:3] if target_dtype is not None else (0, 0, 0)),
            NOISE=NOISE_CODES[noise],
            DRAW_LEVEL=logit is not None,
            TARGET=target_dtype is not None,
            REPEAT=repeat,
            FLAT=is_flat(clean) and is_flat(cond),
            FRAMES=tuning.frames,
            BLOCK=tuning.block,
            LANES=tuning.lanes,
            APPROX=tuning.approx,
            **launch_options(tuning.num_warps),
        )
    return network_input, target, sigma_cond, keep


def corrupt(
    values: Tensor,
    sigma_cond: Tensor,
    keep: Tensor,
    key: Tensor,
    sample_ids: Tensor,
    stream: int,
    *,
    tuning: Tuning | None = None,
) -> Tensor:
    """Noise a tensor with `corrupt_kernel`.

    Args:
        values: (B, L, D), any strides.
        sigma_cond: (B,) float32 contiguous.
        keep: (B,) float32 contiguous.
        key: (2,) int64 seed and step.
        sample_ids: (B,) int64 contiguous.
        stream: what the noise is for.
        tuning: launch parameters, for tests.

    Returns:
        (B, L, D) contiguous, dtype of ``values``.
    """
    out = torch.empty(values.shape, dtype=values.dtype, device=values.device)
    if values.numel() == 0:
        return out
    batch, length, width = values.shape
    half = is_half(values.dtype)
    lanes = 8 if half else 4  # a program starts at a multiple of BLOCK: any size has whole lanes
    tuning = tuning or Tuning(
        block=128 * lanes,
        frames=1,
        lanes=lanes,
        num_warps=128 // warp_size_of(values),
        approx=half and is_nvidia(values),
    )
    with torch.cuda.device_of(values):
        corrupt_kernel[(triton.cdiv(length * width, tuning.block), batch)](
            values,
            out,
            sigma_cond,
            keep,
            key,
            sample_ids,
            length * width,
            width,
            *values.stride(),
            STREAM=stream,
            FLAT=is_flat(values),
            BLOCK=tuning.block,
            LANES=tuning.lanes,
            APPROX=tuning.approx,
            **launch_options(tuning.num_warps),
        )
    return out
