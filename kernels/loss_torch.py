"""The weighted mean square error and its gradient in plain torch."""

import torch
from torch import Tensor

__all__ = ["square_error"]


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

    Args and returns as ``loss_triton.square_error``.
    """
    error = prediction.to(torch.float32) - target.to(torch.float32)
    losses = prediction.new_empty(0, dtype=torch.float32)
    slope = prediction.new_empty(0)
    if loss:
        losses = error.square().flatten(1).mean(dim=1) * weight
    if grad:
        factor = weight * (2.0 / max(1, error[:1].numel()))
        if upstream is not None:
            factor = factor * upstream
        slope = (error * factor.reshape(-1, 1, 1, 1, 1)).to(prediction.dtype).contiguous()
    return losses, slope
