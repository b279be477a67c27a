"""Counter-based random numbers in torch, with seed and step in a tensor: the twin of the kernels.

Same contract as ``cil.rng``, which is written for integers on the host: Philox4x32-10 with
key = seed and counter = (element index // 4, global sample id, stream, step). Here nothing is read
back to the host, so that it runs inside a compiled graph and a captured CUDA graph.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "COND_NOISE",
    "DROPOUT",
    "SIGMA_COND",
    "TOKEN_NOISE",
    "VIDEO_NOISE",
    "bits",
    "normal",
    "uniform",
]

VIDEO_NOISE = 0
COND_NOISE = 1
SIGMA_COND = 3
DROPOUT = 4
TOKEN_NOISE = 7

_LOW = 0xFFFFFFFF


def bits(count: int, *, key: Tensor, sample_ids: Tensor, stream: int) -> Tensor:
    """Draw 32-bit words.

    Args:
        count: words for each sample, a multiple of 4, at most 2**34.
        key: (2,) int64, the seed (negative numbers mean their two's complement) and the step in
            [0, 2**32).
        sample_ids: (B,) int64 global ids on the device of ``key``; the lower 32 bits count, as
            in the kernels.
        stream: what the words are for, see ``cil.rng.Stream``.

    Returns:
        (B, count) int64, each in [0, 2**32).
    """
    seed, step = key.unbind()
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    shape = (sample_ids.shape[0], count // 4)
    c0 = torch.arange(count // 4, device=key.device).expand(shape)
    c1 = (sample_ids & _LOW)[:, None].expand(shape)
    c2 = torch.full((), stream, dtype=torch.int64, device=key.device).expand(shape)
    c3 = (step & _LOW).expand(shape)
    for _ in range(10):
        # An int64 product of two 32-bit words may wrap, but both of its halves stay right.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW
        c2, c3 = ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return torch.stack((c0, c1, c2, c3), dim=-1).reshape(shape[0], count)


def _to_unit(words: Tensor) -> Tensor:
    return ((words >> 9).to(torch.float64) + 0.5) * 2.0**-23


def uniform(*, key: Tensor, sample_ids: Tensor, stream: int) -> Tensor:
    """Draw one uniform number in (0, 1) for each sample, (B,) float32; arguments as `bits`."""
    words = bits(4, key=key, sample_ids=sample_ids, stream=stream)
    return _to_unit(words[:, 0]).to(torch.float32)


def normal(shape: Sequence[int], *, key: Tensor, sample_ids: Tensor, stream: int) -> Tensor:
    """Draw standard normal numbers.

    Args:
        shape: shape of one sample in logical order, ``()`` for one number.
        key: (2,) int64 seed and step.
        sample_ids: (B,) int64 global ids.
        stream: what the numbers are for.

    Returns:
        (B, *shape) float32; equal to ``cil.rng.normal`` in every bit on a CPU.

    Source: Box and Muller 1958.
    """
    count = math.prod(shape)
    padded = (count + 3) // 4 * 4
    words = bits(padded, key=key, sample_ids=sample_ids, stream=stream)
    u = _to_unit(words).reshape(sample_ids.shape[0], padded // 2, 2)
    radius = torch.sqrt(-2.0 * torch.log(u[..., 0]))
    angle = (2.0 * math.pi) * u[..., 1]
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    values = pairs.to(torch.float32).reshape(sample_ids.shape[0], padded)[:, :count]
    return values.reshape(sample_ids.shape[0], *shape)
