"""Launch parameters of the kernels, chosen from shapes alone, and what decides them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Tuning",
    "is_flat",
    "is_half",
    "is_nvidia",
    "launch_options",
    "tune",
    "warp_size_of",
]

ENOUGH_PROGRAMS = 4096
"""About four waves of programs on 132 processors that hold 8 each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Launch parameters. They change speed and never a bit of the result."""

    block: int
    """Positions per program, a power of two, at least ``lanes``."""
    frames: int
    """Frames per program."""
    lanes: int
    """8, 4 or 1, see ``rng_triton.normal_block``; must divide height * width."""
    num_warps: int
    """Warps per program."""
    approx: bool
    """Use the PTX approximations: NVIDIA only."""


def tune(
    *, spatial: int, rows: int, frames: int, half: bool, nvidia: bool, warp_size: int = 32
) -> Tuning:
    """Choose launch parameters; nothing is measured here, so that they are always the same.

    Args:
        spatial: positions per row, height * width.
        rows: clips * channels.
        frames: frames per row.
        half: all outputs are bf16 or fp16. Then 8 elements make 128 bits, and the error of the
            approximations drowns in the rounding; float32 keeps the polynomials.
        nvidia: the approximations exist.
        warp_size: threads per warp.
    """
    lanes = next(n for n in ((8, 4, 1) if half else (4, 1)) if spatial % n == 0)
    threads = 128
    # A row's last program is partly idle: smaller programs waste less
    while threads > warp_size and -(-spatial // (threads * lanes)) * threads * lanes > (
        1.1 * spatial
    ):
        threads //= 2
    programs = rows * -(-spatial // (threads * lanes)) * frames
    chunk = 1
    # A chunk shares the condition and its noise, but all processors must get programs
    while chunk < min(frames, 8) and programs // (2 * chunk) >= ENOUGH_PROGRAMS:
        chunk *= 2
    return Tuning(
        block=threads * lanes,
        frames=chunk,
        lanes=lanes,
        num_warps=threads // warp_size,
        approx=half and nvidia,
    )


def launch_options(num_warps: int) -> dict[str, Any]:
    """Options of every launch: products and sums are fused where the source says so, only there."""
    return {"num_warps": num_warps, "enable_fp_fusion": False}


def is_half(*dtypes: torch.dtype | None) -> bool:
    """Return whether all dtypes are bf16 or fp16."""
    return all(dtype in (None, torch.bfloat16, torch.float16) for dtype in dtypes)


def is_nvidia(tensor: Tensor) -> bool:
    """Return whether a tensor is on an NVIDIA GPU."""
    return tensor.is_cuda and torch.version.hip is None


def warp_size_of(tensor: Tensor) -> int:
    """Return the threads of a warp of a tensor's device."""
    return 64 if tensor.is_cuda and torch.version.hip is not None else 32


def is_flat(tensor: Tensor) -> bool:
    """Return whether the last two dimensions are one run with the stride of the last."""
    height, width = tensor.shape[-2:]
    return height == 1 or tensor.stride(-2) == width * tensor.stride(-1)
