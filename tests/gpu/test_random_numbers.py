"""Words and normal numbers on a GPU, against Random123, the host and float64."""

import math

import pytest
import torch
import triton
import triton.language as tl

from cil import rng
from kernels.rng_triton import _pair, philox

pytestmark = pytest.mark.gpu

ALL = 0xFFFFFFFF
NVIDIA = torch.version.hip is None


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
def pair_kernel(words_ptr, out_ptr, BLOCK: tl.constexpr, APPROX: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(words_ptr + i * 2).to(tl.uint32)
    second = tl.load(words_ptr + i * 2 + 1).to(tl.uint32)
    c, s = _pair(first, second, APPROX)
    tl.store(out_ptr + i * 2, c)
    tl.store(out_ptr + i * 2 + 1, s)


def test_philox_gives_the_words_of_random123_and_of_the_host(device):
    generator = torch.Generator().manual_seed(1)
    counters = torch.randint(0, 2**32, (1024, 4), generator=generator)
    keys = torch.randint(0, 2**32, (1024, 2), generator=generator)
    counters[0], keys[0] = torch.tensor([0] * 4), torch.tensor([0] * 2)
    counters[1], keys[1] = torch.tensor([ALL] * 4), torch.tensor([ALL] * 2)
    out = torch.zeros(1024, 4, dtype=torch.int64, device=device)
    philox_kernel[(1,)](counters.to(device), keys.to(device), out, COUNT=1024)
    assert out[0].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert out[1].tolist() == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    for row in range(1024):
        counter = tuple(counters[row, i : i + 1] for i in range(4))
        words = rng.philox4x32(counter, tuple(keys[row].tolist()))
        assert out[row].tolist() == [int(word) for word in words]


@pytest.mark.parametrize(("approx", "bound"), [(False, 1e-6), (True, 1e-5)])
def test_normal_numbers_are_exact_enough_everywhere(approx, bound, device):
    """All radii near both ends and every 2**-23 of the first, all eighths of a turn, and chance."""
    if approx and not NVIDIA:
        pytest.skip("the approximations are PTX")
    count = 1 << 24
    generator = torch.Generator().manual_seed(2)
    words = torch.randint(0, 2**32, (count, 2), generator=generator)
    every = torch.arange(2**23) << 9
    words[: 2**23, 0] = every
    words[2**23 :, 1] = every
    worst = 0.0
    out = torch.empty(count, 2, device=device)
    pair_kernel[(count // 1024,)](words.to(device), out, BLOCK=1024, APPROX=approx)
    for part, got in zip(words.split(1 << 22), out.cpu().split(1 << 22), strict=True):
        u = ((part >> 9).double() + 0.5) * 2.0**-23
        radius, angle = torch.sqrt(-2.0 * torch.log(u[:, 0])), 2.0 * math.pi * u[:, 1]
        exact = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        worst = max(worst, (got.double() - exact).abs().max().item())
    print(f"largest error of a normal number, {approx=}: {worst:.2e}")
    assert worst < bound
