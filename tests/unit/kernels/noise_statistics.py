"""What noise must look like, as assertions; shared by the tests of the twin, kernels and GPU.

Thresholds are five or more standard deviations of what independent numbers would give, so that a
check fails by chance less than once in a million; the numbers are the same in every run anyway.
"""

import math

import torch


def ks_distance(values, cdf):
    """Return the largest distance between the values' distribution and ``cdf``."""
    ordered = values.double().flatten().sort().values
    n = ordered.numel()
    expected = cdf(ordered)
    above = torch.arange(1, n + 1, dtype=torch.float64) / n - expected
    below = expected - torch.arange(n, dtype=torch.float64) / n
    return max(above.max().item(), below.max().item())


def assert_distribution(values, cdf):
    assert ks_distance(values, cdf) < 2.5 / math.sqrt(values.numel())  # probability 7e-6


def assert_standard_normal(values):
    x = values.double().flatten()
    n = x.numel()
    assert_distribution(x, torch.special.ndtr)
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs((x**power).mean().item() - moment) < 5.5 * math.sqrt(variance / n), power


def assert_unrelated(first, second):
    """Neither the numbers nor their squares are correlated, and no number occurs in both."""
    a, b = first.double().flatten(), second.double().flatten()
    n = a.numel()
    assert abs((a * b).mean().item()) < 5.5 / math.sqrt(n)
    assert abs(((a**2 - 1) * (b**2 - 1)).mean().item()) < 5.5 * 2 / math.sqrt(n)
    assert (a == b).double().mean().item() < 0.01


def assert_no_shifted_copy(first, second):
    """No part of one is the other, moved by any number of places: all lags by Fourier transform."""
    a, b = first.double().flatten(), second.double().flatten()
    n = a.numel()
    lags = torch.fft.irfft(torch.fft.rfft(a, 2 * n).conj() * torch.fft.rfft(b, 2 * n)) / n
    if first.data_ptr() == second.data_ptr():
        lags[0] = 0.0
    assert lags.abs().max().item() < 7.5 / math.sqrt(n)


def assert_good_noise(video, cond):
    """Check noise of two streams.

    Args:
        video: (B, F, C, H, W).
        cond: (B, F, C, H, W), another stream of the same samples.
    """
    for noise in (video, cond):
        assert_standard_normal(noise)
        for sample in range(1, noise.shape[0]):
            assert_unrelated(noise[0], noise[sample])
            assert_no_shifted_copy(noise[0], noise[sample])
        for frame in range(1, noise.shape[1]):
            assert_unrelated(noise[:, 0], noise[:, frame])
        for channel in range(1, noise.shape[2]):
            assert_unrelated(noise[:, :, 0], noise[:, :, channel])
        flat = noise.flatten(1)
        for lag in range(1, 9):
            assert_unrelated(flat[:, lag:], flat[:, :-lag])
        assert_no_shifted_copy(flat[0], flat[0])
        unique = noise.unique().numel() / noise.numel()
        assert unique > 0.98  # float32 has room for chance repeats of 1 in 100, not for counters
    assert_unrelated(video, cond)
    assert_no_shifted_copy(video[0], cond[0])
