"""Checks of arguments, on the host: shapes, dtypes, devices, strides, and ranges of int32 offsets.

No value on a device is looked at, because the host would have to wait for it.
"""

import torch
from torch import Tensor

__all__ = [
    "FLOATS",
    "INT32",
    "check_device",
    "check_floats",
    "check_layout",
    "check_small",
    "require",
]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INT32 = 2**31
"""Offsets inside one clip are below this."""
GRID = 65535
"""Most programs in the second dimension of a grid."""


def require(condition: bool, message: str) -> None:
    """Raise ValueError unless a condition holds."""
    if not condition:
        raise ValueError(message)


def check_floats(name: str, tensor: Tensor, ndim: int) -> None:
    """Refuse video tensors that the kernels cannot address or read."""
    require(
        tensor.ndim == ndim,
        f"{name} must have {ndim} dimensions, got the shape {tuple(tensor.shape)}",
    )
    require(
        tensor.dtype in FLOATS,
        f"{name} must be float32, bfloat16 or float16, got {tensor.dtype}; convert it",
    )
    require(
        all(size > 0 for size in tensor.shape[1:]),
        f"{name} may have an empty batch but no other empty dimension, got {tuple(tensor.shape)}",
    )
    require(
        tensor.shape[0] <= GRID,
        f"{name} must have at most {GRID} clips, got {tensor.shape[0]}; split the batch",
    )
    span = sum((n - 1) * s for n, s in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))
    require(
        span < INT32,
        f"one clip of {name} must span fewer than 2**31 elements in memory, got {span + 1}; "
        "make it contiguous, or use fewer frames",
    )


def check_layout(layout: str) -> None:
    """Refuse an unknown order of dimensions."""
    require(layout in ("bfchw", "bcfhw"), f"layout must be bfchw or bcfhw, got {layout!r}")


def check_small(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, like: Tensor
) -> Tensor:
    """Refuse a small tensor that does not fit; return it contiguous."""
    require(
        tuple(tensor.shape) == shape,
        f"{name} must have the shape {shape}, got {tuple(tensor.shape)}",
    )
    require(tensor.dtype == dtype, f"{name} must be {dtype}, got {tensor.dtype}; convert it")
    check_device(name, tensor, like)
    return tensor.contiguous()


def check_device(name: str, tensor: Tensor, like: Tensor) -> None:
    """Refuse a tensor on another device than the latents."""
    require(
        tensor.device == like.device,
        f"{name} must be on {like.device}, as the latents are, got {tensor.device}; move it",
    )
