"""The kernels of the weighted mean square error and its gradient, and how they are launched.

`square_error_kernel` reads prediction and target once and writes the sum of squares of each run of
BLOCK positions, the gradient, or both. `finish_kernel` adds the sums of one clip. No atomics, one
fixed BLOCK and one fixed tree of additions, frame-major, which is written here and not left to the
compiler: a clip's loss has the same bits whatever the batch around it, strides and alignment of
its tensors, and the day.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202, PLR0917

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import is_flat, launch_options

__all__ = ["finish_kernel", "square_error", "square_error_kernel"]

BLOCK = 1024
"""Part of the result: another value changes the last bits of a loss."""


@triton.jit
def tree_sum(x, NEIGHBOURS: tl.constexpr):
    """Add up to 1024 numbers in pairs that are written here: `tl.sum` would follow the layout.

    NEIGHBOURS: pair neighbours, which one thread holds if it loads 128 bits; else the two halves,
    of which one thread holds both numbers if it loads 32 bits.
    """
    for _ in tl.static_range(10):
        if x.shape[0] > 1:
            if NEIGHBOURS:
                left, right = tl.split(tl.reshape(x, (x.shape[0] // 2, 2)))
            else:
                left, right = tl.split(tl.permute(tl.reshape(x, (2, x.shape[0] // 2)), (1, 0)))
            x = left + right
    return tl.max(x, axis=0)  # of one number: makes it a scalar


@triton.jit
def square_error_kernel(
    prediction_ptr,
    target_ptr,
    weight_ptr,
    upstream_ptr,
    sums_ptr,
    grad_ptr,
    two_over_count,
    channels,
    width,
    spatial,
    prediction_b,
    prediction_f,
    prediction_c,
    prediction_h,
    prediction_w,
    target_b,
    target_f,
    target_c,
    target_h,
    target_w,
    grad_b,
    grad_f,
    grad_c,
    LOSS: tl.constexpr,
    GRAD: tl.constexpr,
    UPSTREAM: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Handle BLOCK positions of one channel of one frame of one clip."""
    b = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0)
    runs = tl.cdiv(spatial, BLOCK)
    row = place // runs
    f = row // channels
    c = row % channels
    s = (place % runs) * BLOCK + tl.arange(0, BLOCK)
    inside = s < spatial
    if FLAT:
        prediction_s = s * prediction_w
        target_s = s * target_w
    else:
        prediction_s = (s // width) * prediction_h + (s % width) * prediction_w
        target_s = (s // width) * target_h + (s % width) * target_w
    prediction_at = prediction_ptr + b * prediction_b + f * prediction_f + c * prediction_c
    target_at = target_ptr + b * target_b + f * target_f + c * target_c
    prediction = tl.load(prediction_at + prediction_s, mask=inside, other=0.0).to(tl.float32)
    target = tl.load(target_at + target_s, mask=inside, other=0.0).to(tl.float32)
    error = prediction - target
    if LOSS:
        tl.store(sums_ptr + b * tl.num_programs(0) + place, tree_sum(error * error, True))
    if GRAD:
        factor = tl.load(weight_ptr + b) * two_over_count
        if UPSTREAM:
            factor = factor * tl.load(upstream_ptr + b)
        grad_at = grad_ptr + b * grad_b + f * grad_f + c * grad_c + s
        tl.store(grad_at, (error * factor).to(grad_ptr.dtype.element_ty), mask=inside)


@triton.jit
def finish_kernel(
    sums_ptr,
    weight_ptr,
    loss_ptr,
    one_over_count,
    num_sums,
    TRIPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the sums of one clip, BLOCK at a time."""
    b = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in range(TRIPS):
        at = i * BLOCK + place
        total += tl.load(sums_ptr + b * num_sums + at, mask=at < num_sums, other=0.0)
    loss = tree_sum(total, False) * one_over_count * tl.load(weight_ptr + b)
    tl.store(loss_ptr + b, loss)


def square_error(
    prediction: Tensor,
    target: Tensor,
    weight: Tensor,
    upstream: Tensor | None = None,
    *,
    loss: bool,
    grad: bool,
) -> tuple[Tensor, Tensor]:
    """Return weight * mean square error of each clip, its gradient, or both.

    Args:
        prediction: (B, F, C, H, W), any strides.
        target: (B, F, C, H, W), any strides.
        weight: (B,) float32 contiguous.
        upstream: (B,) float32 contiguous, gradient of what is minimised by each clip's loss.
        loss: compute the loss.
        grad: compute the gradient.

    Returns:
        (B,) float32 losses and the gradient, shape and dtype of ``prediction``; empty tensors for
        what was not asked for.
    """
    batch, frames, channels, height, width = prediction.shape
    count = frames * channels * height * width
    losses = prediction.new_empty(batch if loss else 0, dtype=torch.float32)
    slope = torch.empty(
        prediction.shape if grad else (0,), dtype=prediction.dtype, device=prediction.device
    )
    if prediction.numel() == 0:
        return losses.fill_(float("nan")), slope  # the mean of nothing
    num_sums = triton.cdiv(height * width, BLOCK) * frames * channels
    sums = prediction.new_empty((batch, num_sums) if loss else (0,), dtype=torch.float32)
    with torch.cuda.device_of(prediction):
        square_error_kernel[(num_sums, batch)](
            prediction,
            target,
            weight,
            weight if upstream is None else upstream,
            sums,
            slope,
            2.0 / count,
            channels,
            width,
            height * width,
            *prediction.stride(),
            *target.stride(),
            *(slope.stride()[:3] if grad else (0, 0, 0)),
            LOSS=loss,
            GRAD=grad,
            UPSTREAM=upstream is not None,
            FLAT=is_flat(prediction) and is_flat(target),
            BLOCK=BLOCK,
            **launch_options(4),
        )
        if loss:
            finish_kernel[(batch,)](
                sums,
                weight,
                losses,
                1.0 / count,
                num_sums,
                TRIPS=triton.cdiv(num_sums, BLOCK),
                BLOCK=BLOCK,
                **launch_options(4),
            )
    return losses, slope
