import math

import pytest
import torch

from cil import rng
from kernels import input_torch, rng_torch


def key(seed, step):
    return torch.tensor([seed, step])


@pytest.mark.parametrize("seed", [0, -1, 2**40 + 17, -(2**63)])
@pytest.mark.parametrize("shape", [(), (5,), (3, 2, 5, 7)])
def test_the_twin_is_the_hosts_noise_in_every_bit(seed, shape):
    ids = torch.tensor([0, 7, 2**32 - 2])
    for stream in (0, 7):
        given = {"sample_ids": ids, "stream": stream}
        got = rng_torch.normal(shape, key=key(seed, 2**32 - 1), **given)
        assert torch.equal(got, rng.normal(shape, seed=seed, step=2**32 - 1, **given))
    got = rng_torch.uniform(key=key(seed, 3), sample_ids=ids, stream=4)
    assert torch.equal(got, rng.uniform((), seed=seed, step=3, sample_ids=ids, stream=4))


def test_streams_are_those_of_the_host():
    names = ("VIDEO_NOISE", "COND_NOISE", "SIGMA_COND", "DROPOUT", "TOKEN_NOISE")
    for name in names:
        assert getattr(rng_torch, name) == rng.Stream[name]


def test_no_samples_and_no_elements():
    empty = torch.zeros(0, dtype=torch.int64)
    assert rng_torch.normal((2, 3), key=key(1, 2), sample_ids=empty, stream=0).shape == (0, 2, 3)
    some = torch.zeros(2, dtype=torch.int64)
    assert rng_torch.normal((0,), key=key(1, 2), sample_ids=some, stream=0).shape == (2, 0)


def both_streams(ids=(3, 2**31 + 3), streams=(0, 1)):
    given = {"key": key(1, 0), "sample_ids": torch.tensor(ids)}
    return [rng_torch.normal((2, 2, 64, 128), stream=stream, **given) for stream in streams]


@pytest.fixture(scope="module")
def noise():
    return both_streams()


def test_noise_is_normal_and_independent(noise, statistics):
    statistics.assert_good_noise(*noise)


@pytest.mark.parametrize("broken", [{"streams": (0, 0)}, {"ids": (3, 3)}])
def test_the_statistics_see_reuse(broken, statistics):
    with pytest.raises(AssertionError):
        statistics.assert_good_noise(*both_streams(**broken))


FAULTS = {
    "a row repeats itself": lambda x: torch.cat([x[..., :64], x[..., :64]], dim=-1),
    "rounded": lambda x: x.bfloat16().float(),
    "cut off": lambda x: x.clamp(-2.5, 2.5),
    "moved": lambda x: x + 0.03,
    "scaled": lambda x: x * 1.03,
    "smoothed": lambda x: (x + 0.05 * x.roll(5, -1)) / (1 + 0.05**2) ** 0.5,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_statistics_see_that_noise_is(fault, noise, statistics):
    with pytest.raises(AssertionError):
        statistics.assert_good_noise(FAULTS[fault](noise[0]), noise[1])


def test_dropout_and_sigma_cond_have_their_distributions(statistics):
    """20 000 clips; the kernels are compared with this twin."""
    ids = torch.arange(20_000)
    for step in (0, 9):
        uniform = rng_torch.uniform(key=key(5, step), sample_ids=ids, stream=rng_torch.DROPOUT)
        statistics.assert_distribution(uniform, lambda u: u)
        level = torch.full((20_000,), 0.7)
        sigma_cond = input_torch.draw_sigma_cond(level, key(5, step), ids, (4.0, 1.5))
        logit = torch.log(sigma_cond.double() / (4.0 - sigma_cond.double()))
        statistics.assert_standard_normal((logit - 0.7) / 1.5)
        statistics.assert_unrelated((logit - 0.7) / 1.5, (uniform - 0.5) * math.sqrt(12))
        keep = input_torch.draw_keep(key(5, step), ids, 0.1)
        assert torch.equal(keep, (uniform >= 0.1).float())


def test_the_distribution_check_can_fail(statistics):
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(1))
    with pytest.raises(AssertionError):
        statistics.assert_distribution(uniform**1.1, lambda u: u)
