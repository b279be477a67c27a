"""Noise of the kernels: bits, accuracy, statistics, and that the statistics can fail."""

import math

import pytest
import torch
import triton
import triton.language as tl

from cil import rng
from kernels import input_triton
from kernels.rng_triton import _pair, normal_block, philox

ALL = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL,) * 4, (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@triton.jit
def philox_kernel(counters_ptr, keys_ptr, out_ptr, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    c0 = tl.load(counters_ptr + i * 4).to(tl.uint32)
    c1 = tl.load(counters_ptr + i * 4 + 1).to(tl.uint32)
    c2 = tl.load(counters_ptr + i * 4 + 2).to(tl.uint32)
    c3 = tl.load(counters_ptr + i * 4 + 3).to(tl.uint32)
    k0 = tl.load(keys_ptr + i * 2).to(tl.uint32)
    k1 = tl.load(keys_ptr + i * 2 + 1).to(tl.uint32)
    w0, w1, w2, w3 = philox(c0, c1, c2, c3, k0, k1)
    tl.store(out_ptr + i * 4, w0.to(tl.int64))
    tl.store(out_ptr + i * 4 + 1, w1.to(tl.int64))
    tl.store(out_ptr + i * 4 + 2, w2.to(tl.int64))
    tl.store(out_ptr + i * 4 + 3, w3.to(tl.int64))


@triton.jit
def pair_kernel(words_ptr, out_ptr, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    first = tl.load(words_ptr + i * 2).to(tl.uint32)
    second = tl.load(words_ptr + i * 2 + 1).to(tl.uint32)
    c, s = _pair(first, second, False)
    tl.store(out_ptr + i * 2, c)
    tl.store(out_ptr + i * 2 + 1, s)


@triton.jit
def normal_kernel(numbers_ptr, out_ptr, BLOCK: tl.constexpr, LANES: tl.constexpr):
    first = tl.program_id(0) * BLOCK + tl.load(numbers_ptr + 4).to(tl.int32)
    sample = tl.load(numbers_ptr).to(tl.uint32)
    step = tl.load(numbers_ptr + 1).to(tl.uint32)
    low = tl.load(numbers_ptr + 2).to(tl.uint32)
    high = tl.load(numbers_ptr + 3).to(tl.uint32)
    values = normal_block(first, sample, 7, step, low, high, BLOCK, LANES, False)
    tl.store(out_ptr + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), values)


def test_philox_gives_the_words_of_random123_and_of_the_host():
    generator = torch.Generator().manual_seed(1)
    counters = torch.randint(0, 2**32, (64, 4), generator=generator)
    keys = torch.randint(0, 2**32, (64, 2), generator=generator)
    for row, (counter, key, _) in enumerate(KNOWN):
        counters[row], keys[row] = torch.tensor(counter), torch.tensor(key)
    out = torch.zeros(64, 4, dtype=torch.int64)
    philox_kernel[(1,)](counters, keys, out, COUNT=64)
    for row, (_, _, words) in enumerate(KNOWN):
        assert tuple(out[row].tolist()) == words
    for row in range(64):
        words = rng.philox4x32(
            tuple(counters[row, i : i + 1] for i in range(4)), tuple(keys[row].tolist())
        )
        assert out[row].tolist() == [int(word) for word in words]


def exact_pairs(words):
    u = ((words >> 9).double() + 0.5) * 2.0**-23
    radius = torch.sqrt(-2.0 * torch.log(u[:, 0]))
    angle = 2.0 * math.pi * u[:, 1]
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)


def test_normal_numbers_are_exact_enough_at_all_ends_of_their_range():
    """The smallest and largest radius, the seams of the logarithm, and all eighths of a turn."""
    half = 0x5A82799A  # sqrt(1/2), where the exponent of the logarithm changes
    firsts = [0, 511, 512, 1 << 31, (1 << 31) - 1, ALL, ALL - 512, ALL - 1024, ALL - (1 << 20)]
    firsts += [half + d for d in (-1024, -512, 0, 512, 1024)]
    firsts += [2 * half - 512, 2 * half, 2 * half + 512, 2**32 - 2**23, 2**32 - 2**23 + 512]
    seconds = [(eighth << 29) + d for eighth in range(8) for d in (0, 512, 1 << 20)]
    seconds += [(eighth << 29) - 1 for eighth in range(1, 9)]
    ends = torch.cartesian_prod(torch.tensor(firsts), torch.tensor(seconds))
    generator = torch.Generator().manual_seed(2)
    words = torch.randint(0, 2**32, (1 << 16, 2), generator=generator)
    words[: ends.shape[0]] = ends
    out = torch.zeros(1 << 16, 2)
    pair_kernel[(1,)](words, out, COUNT=1 << 16)
    exact = exact_pairs(words)
    assert (out - exact).abs().max().item() < 1e-6
    assert exact.abs().max().item() > 5.7


@pytest.mark.parametrize(
    ("lanes", "block", "start"), [(8, 64, 1016), (4, 256, 1004), (1, 64, 1003)]
)
def test_normal_blocks_are_the_hosts_noise(lanes, block, start):
    seed, sample, step = -7, 2**32 - 5, 2**32 - 2
    numbers = torch.tensor([sample, step, seed & ALL, (seed >> 32) & ALL, start])
    out = torch.zeros(2 * block)
    normal_kernel[(2,)](numbers, out, BLOCK=block, LANES=lanes)
    expected = rng.normal(
        (start + 2 * block,), seed=seed, sample_ids=[sample], stream=7, step=step
    )[0, start:]
    assert (out - expected).abs().max().item() < 1e-6


def two_streams(module, *, samples=(3, 2**31 + 3)):
    """Return noise of the video and of the condition, (B, F, C, H, W) float32 each."""
    shape = (len(samples), 2, 2, 64, 128)
    zero, one = torch.zeros(shape), torch.ones(len(samples))
    rows = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0]]).repeat(len(samples), 1)
    network_input, _, _, _ = module.training_input(
        zero,
        zero,
        rows,
        one,
        torch.tensor([1, 0]),
        torch.tensor(samples),
        noise="per_frame",
        logit=None,
        dropout=0.0,
        dtype=torch.float32,
        target_dtype=None,
        channels_first=False,
        tuning=module.Tuning(block=8192, frames=2, lanes=8, num_warps=4, approx=False),
    )
    return network_input.chunk(2, dim=2)


def test_noise_is_normal_and_independent(statistics):
    statistics.assert_good_noise(*two_streams(input_triton))


MUTANTS = {
    "streams are one": (
        "input_triton",
        "_COND_NOISE = tl.constexpr(1)",
        "_COND_NOISE = tl.constexpr(0)",
    ),
    "samples are one": (
        "input_triton",
        "sample = tl.load(ids_ptr + b).to(tl.uint32)",
        "sample = tl.load(ids_ptr + b).to(tl.uint32) * 0",
    ),
    "frames are one": (
        "input_triton",
        "start = (f * channels + c) * spatial + first",
        "start = c * spatial + first",
    ),
    "channels are one": (
        "input_triton",
        "start = (f * channels + c) * spatial + first",
        "start = f * spatial + first",
    ),
    "a counter is used twice": ("rng_triton", "even + 1, sample", "even, sample"),
    "two words are used twice": ("rng_triton", "n2, n3 = _pair(w2, w3", "n2, n3 = _pair(w0, w1"),
    "a factor is 3 % off": ("rng_triton", "return r * c, r * s", "return r * c, r * s * 0.97"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_statistics_see_that(name, mutant, statistics):
    with pytest.raises(AssertionError):
        statistics.assert_good_noise(*two_streams(mutant(*MUTANTS[name])["input_triton"]))


def test_every_word_of_seed_and_step_changes_the_noise(statistics):
    def noise(seed, step, sample=3):
        numbers = torch.tensor([sample, step, seed & ALL, seed >> 32, 0])
        out = torch.zeros(8192)
        normal_kernel[(1,)](numbers, out, BLOCK=8192, LANES=8)
        return out

    base = noise(1, 0)
    for other in (noise(2, 0), noise(1 + 2**32, 0), noise(1, 1), noise(1, 0, sample=4)):
        statistics.assert_unrelated(base, other)
        statistics.assert_no_shifted_copy(base, other)
