"""Counter-based random numbers: a number depends on what it is for, never on how it was computed.

Philox4x32-10 maps (key, counter) to four 32-bit words. Here

    key     = the 64-bit seed (low word first)
    counter = (element index // 4, global sample id, stream, step)

and the element index runs over one sample in frame-major logical order: for (F, C, H, W) it is
((f * C + c) * H + h) * W + w. Word ``element index % 4`` belongs to the element. So the noise of a
clip at a step is the same for every batch split, worker count, chunking, memory layout and device.

A word becomes a uniform number by its upper 23 bits, (word >> 9) + 1/2 over 2**23: a float32
strictly inside (0, 1), exactly representable, so that another implementation starts its logarithm
from the same number. Normal numbers come from Box-Muller on words (0, 1) and (2, 3). Transcendental
functions run in float64 and are rounded to float32 once: an error in the last bit of float64, which
may differ between the vectorised body and the tail of a loop, all but never reaches the result.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from cil.errors import ConfigError

__all__ = ["BATCH_SAMPLE_ID", "Stream", "bits", "normal", "permutation", "philox4x32", "uniform"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_ROUNDS = 10

BATCH_SAMPLE_ID = _LOW
"""The sample id of draws that a whole batch shares; no clip may have it."""


class Stream(IntEnum):
    """What a random number is for. The numbers are part of the data format: never change one."""

    VIDEO_NOISE = 0
    """Noise of the video latents, (F, C, H, W)."""
    COND_NOISE = 1
    """Noise of the conditioning latents, (F, C, H, W), (1, C, H, W) or one number."""
    TIME = 2
    """Uniform number that becomes the training noise level."""
    SIGMA_COND = 3
    """Normal number that becomes sigma_cond."""
    DROPOUT = 4
    """Uniform number that drops the condition."""
    POSTERIOR = 5
    """Sample of the video latents' posterior, (F, C, H, W)."""
    COND_POSTERIOR = 6
    """Sample of the conditioning latents' posterior, (1, C, H, W)."""
    TOKEN_NOISE = 7
    """Noise of the image tokens, (L, D)."""
    INIT_NOISE = 8
    """Noise that a sampler starts from, (F, C, H, W)."""
    SAMPLER_NOISE = 9
    """Noise that a stochastic sampler adds, (F, C, H, W); the counter's step is the sampler's."""
    ORDER = 10
    """Order of the clips of an epoch."""
    SHUFFLED_TIME = 11
    """Uniform number that becomes the unrelated time of the ``shuffled`` control."""
    TOKEN_REPLACE = 12
    """Uniform number that replaces the image tokens by noise."""
    CONDITIONING_FRAME = 13
    """Uniform number that chooses the conditioning frame."""
    PIXEL_NOISE = 14
    """Noise of the conditioning image's pixels, (C, H, W)."""
    BATCH_ORDER = 15
    """Order of the batches of an epoch, which tells when each bucket has its turn."""
    NETWORK_DROPOUT = 16
    """Seed of the generator that dropout inside of the network draws from."""
    TOKEN_SIGMA = 17
    """Normal number that becomes the noise level of the image tokens, where they have their own."""


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Apply the ten rounds of Philox4x32 to counters of four words.

    Args:
        counter: four int64 tensors of one broadcastable shape, each in [0, 2**32).
        key: two words, each in [0, 2**32).

    Returns:
        Four int64 tensors with the words of the result, in [0, 2**32).

    Source: Salmon et al. 2011, section 4.3; Random123.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # An int64 product of two 32-bit words may wrap, but both of its halves stay right.
        p0 = c0 * _MULTIPLIERS[0]
        p1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _LOW) ^ c1 ^ k0,
            p1 & _LOW,
            ((p0 >> 32) & _LOW) ^ c3 ^ k1,
            p0 & _LOW,
        )
        k0 = (k0 + _KEY_STEPS[0]) & _LOW
        k1 = (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


def _key(seed: int) -> tuple[int, int]:
    if not -(2**63) <= seed < 2**64:
        raise ConfigError(f"seed must fit in 64 bits, got {seed=}; choose one below 2**64")
    return seed & _LOW, (seed >> 32) & _LOW


def _word(name: str, value: int) -> int:
    if not 0 <= value <= _LOW:
        raise ConfigError(f"{name} must be in [0, 2**32), got {value}; it is one counter word")
    return int(value)


def bits(
    count: int, *, seed: int, sample_ids: Tensor | Sequence[int], stream: int, step: int
) -> Tensor:
    """Draw 32-bit words.

    Args:
        count: words for each sample, at most 2**34.
        seed: 64-bit key; negative numbers mean their two's complement.
        sample_ids: (B,) global ids of the samples in [0, 2**32); a tensor's device is kept.
        stream: what the words are for, see `Stream`.
        step: training step, or a sampler's step, in [0, 2**32).

    Returns:
        (B, count) int64, each in [0, 2**32).

    Raises:
        ConfigError: seed, stream, step, count or an id does not fit in its counter word.
    """
    ids = torch.as_tensor(sample_ids, dtype=torch.int64)
    if ids.ndim != 1:
        raise ConfigError(f"sample_ids must have the shape (B), got {tuple(ids.shape)}")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) <= _LOW:
        raise ConfigError(
            f"sample_ids must be in [0, 2**32), got {int(ids.min())} to {int(ids.max())}; "
            "number the clips by their position in the manifest"
        )
    blocks = (count + 3) // 4
    _word("count // 4", max(blocks - 1, 0))
    shape = (ids.shape[0], blocks)
    counter = (
        torch.arange(blocks, device=ids.device).expand(shape),
        ids[:, None].expand(shape),
        ids.new_full((1, 1), _word("stream", stream)).expand(shape),
        ids.new_full((1, 1), _word("step", step)).expand(shape),
    )
    words = torch.stack(philox4x32(counter, _key(seed)), dim=-1)
    return words.reshape(shape[0], blocks * 4)[:, :count]


def _to_unit(words: Tensor) -> Tensor:
    return ((words >> 9).to(torch.float64) + 0.5) * 2.0**-23


def uniform(
    shape: Sequence[int],
    *,
    seed: int,
    sample_ids: Tensor | Sequence[int],
    stream: int,
    step: int,
) -> Tensor:
    """Draw uniform numbers in the open interval (0, 1).

    Args:
        shape: shape of one sample in logical order, ``()`` for one number.
        seed: 64-bit key.
        sample_ids: (B,) global ids of the samples.
        stream: what the numbers are for, see `Stream`.
        step: training step, or a sampler's step.

    Returns:
        (B, *shape) float32, each an odd multiple of 2**-24.
    """
    words = bits(math.prod(shape), seed=seed, sample_ids=sample_ids, stream=stream, step=step)
    return _to_unit(words).to(torch.float32).reshape(-1, *shape)


def normal(
    shape: Sequence[int],
    *,
    seed: int,
    sample_ids: Tensor | Sequence[int],
    stream: int,
    step: int,
) -> Tensor:
    """Draw standard normal numbers.

    Args:
        shape: shape of one sample in logical order, ``()`` for one number.
        seed: 64-bit key.
        sample_ids: (B,) global ids of the samples.
        stream: what the numbers are for, see `Stream`.
        step: training step, or a sampler's step.

    Returns:
        (B, *shape) float32, at most 5.77 in size.

    Source: Box and Muller 1958; r = sqrt(-2 ln u0), then r cos(2 pi u1) and r sin(2 pi u1).
    """
    count = math.prod(shape)
    padded = (count + 3) // 4 * 4
    words = bits(padded, seed=seed, sample_ids=sample_ids, stream=stream, step=step)
    u = _to_unit(words).reshape(-1, padded // 2, 2)
    radius = torch.sqrt(-2.0 * torch.log(u[..., 0]))
    angle = (2.0 * math.pi) * u[..., 1]
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    values = pairs.to(torch.float32).reshape(-1, padded)[:, :count]
    return values.reshape(-1, *shape)


def permutation(n: int, *, seed: int, epoch: int, stream: int = Stream.ORDER) -> Tensor:
    """Order 0..n-1 at random, as a pure function of its arguments that never changes.

    Element i gets the 64-bit key (word 0, word 1) of counter (i, 0, stream, epoch); the result
    lists the elements by increasing key, equal keys by increasing i.

    Args:
        n: number of elements, in [0, 2**32).
        seed: 64-bit key.
        epoch: which order, in [0, 2**32).
        stream: what is put in order.

    Returns:
        (n,) int64, a permutation of 0..n-1.

    Raises:
        ConfigError: an argument does not fit in its counter word.
    """
    index = torch.arange(_word("n", n))
    zero = torch.zeros_like(index)
    counter = (index, zero, zero + int(stream), zero + _word("epoch", epoch))
    high, low, _, _ = philox4x32(counter, _key(seed))
    # Subtracting 2**31 makes the signed order of the int64 that of the unsigned 64-bit key.
    return torch.argsort(((high - 2**31) << 32) | low, stable=True)
