"""Frames as a first stage takes them: (F, H, W, 3) uint8, cut into square patches and put back."""

from typing import Any

import torch
from torch import Tensor

from cil.errors import DataError

__all__ = ["as_frames", "from_patches", "to_patches"]


def as_frames(frames: Any, *, divisor: int = 1) -> Tensor:
    """Check frames and make them a tensor.

    Args:
        frames: (F, H, W, 3) uint8 RGB, a torch tensor or a numpy array; F, H and W >= 1.
        divisor: H and W must be multiples of it.

    Returns:
        (F, H, W, 3) uint8, sharing memory with a tensor given.

    Raises:
        DataError: another dtype or shape, no pixel, or a size that does not divide.
    """
    # A read-only array (Ray's) would make as_tensor warn: copy what is not a tensor.
    tensor = frames if isinstance(frames, Tensor) else torch.tensor(frames)
    if tensor.dtype != torch.uint8:
        raise DataError(f"frames must be uint8, got {tensor.dtype}; convert to 0..255 first")
    if tensor.ndim != 4 or tensor.shape[-1] != 3 or tensor.numel() == 0:
        raise DataError(f"frames must have the shape (F, H, W, 3), got {tuple(tensor.shape)}")
    height, width = tensor.shape[1:3]
    if height % divisor or width % divisor:
        raise DataError(
            f"frame height and width must be multiples of {divisor}, got {height} x {width}; "
            "resize or crop the frames"
        )
    return tensor


def to_patches(frames: Tensor, patch_size: int) -> Tensor:
    """Cut frames into patches.

    Args:
        frames: (F, H, W, 3), H and W multiples of ``patch_size``.
        patch_size: side of a patch in pixels.

    Returns:
        (F, h, w, D) with D = patch_size * patch_size * 3, rows of a patch first, colours last.
    """
    num_frames, height, width, colours = frames.shape
    rows, columns = height // patch_size, width // patch_size
    cut = frames.reshape(num_frames, rows, patch_size, columns, patch_size, colours)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(num_frames, rows, columns, -1)


def from_patches(patches: Tensor, patch_size: int) -> Tensor:
    """Undo ``to_patches``.

    Args:
        patches: (F, h, w, D) with D = patch_size * patch_size * 3.
        patch_size: side of a patch in pixels.

    Returns:
        (F, H, W, 3).
    """
    num_frames, rows, columns, _ = patches.shape
    cut = patches.reshape(num_frames, rows, columns, patch_size, patch_size, 3)
    joined = cut.permute(0, 1, 3, 2, 4, 5)
    return joined.reshape(num_frames, rows * patch_size, columns * patch_size, 3)
