import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cil import rng
from cil.errors import ConfigError
from cil.rng import Stream

ALL = 0xFFFFFFFF
FROZEN = [
    0.7347768545150757,
    0.9333478212356567,
    0.47817060351371765,
    -0.2545728087425232,
    1.363974928855896,
    -2.530557155609131,
]
FROZEN_ORDER = [2, 4, 0, 9, 1, 8, 5, 6, 3, 7]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL,) * 4, (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_matches_the_known_answers_of_random123(counter, key, words):
    got = rng.philox4x32(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in got) == words


def test_bits_follow_the_counter_contract():
    """Fails when the order of the counter words, the key halves or the lanes is changed."""
    seed, sample, stream, step = (0x299F31D0 << 32) | 0xA4093822, 7, 3, 11
    got = rng.bits(10, seed=seed, sample_ids=[5, sample], stream=stream, step=step)
    for element in range(10):
        counter = (element // 4, sample, stream, step)
        words = rng.philox4x32(
            tuple(torch.tensor([word]) for word in counter), (0xA4093822, 0x299F31D0)
        )
        assert int(got[1, element]) == int(words[element % 4])


def test_normal_numbers_never_change():
    """Stored noise would lose its meaning: these numbers are part of the data format."""
    got = rng.normal((6,), seed=1234, sample_ids=[42], stream=Stream.VIDEO_NOISE, step=3)
    words = rng.bits(8, seed=1234, sample_ids=[42], stream=Stream.VIDEO_NOISE, step=3)[0].tolist()
    expected = []
    for i in range(0, 8, 2):
        u0, u1 = (((word >> 9) + 0.5) / 2**23 for word in words[i : i + 2])
        radius = math.sqrt(-2.0 * math.log(u0))
        expected += [radius * math.cos(2 * math.pi * u1), radius * math.sin(2 * math.pi * u1)]
    torch.testing.assert_close(got[0], torch.tensor(expected[:6]), rtol=1e-6, atol=1e-7)
    assert torch.equal(got[0], torch.tensor(FROZEN))


@settings(max_examples=20, deadline=None)
@given(
    split=st.integers(1, 7), seed=st.integers(-(2**63), 2**64 - 1), step=st.integers(0, 2**32 - 1)
)
def test_noise_does_not_depend_on_the_batch_split(split, seed, step):
    ids = [3, 1, 4, 159, 26, 5, 2**32 - 2, 35]
    whole = rng.normal((2, 3, 5), seed=seed, sample_ids=ids, stream=0, step=step)
    parts = [
        rng.normal((2, 3, 5), seed=seed, sample_ids=part, stream=0, step=step)
        for part in (ids[:split], ids[split:])
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_more_elements_extend_the_same_sequence():
    short = rng.normal((13,), seed=0, sample_ids=[0], stream=0, step=0)
    long = rng.normal((1001,), seed=0, sample_ids=[0], stream=0, step=0)
    assert torch.equal(short[0], long[0, :13])


def test_every_part_of_the_key_and_counter_matters():
    base = {"seed": 1, "sample_ids": [2], "stream": 3, "step": 4}
    first = rng.bits(64, **base)
    for change in (
        {"seed": 2},
        {"seed": 1 + 2**32},
        {"sample_ids": [3]},
        {"stream": 4},
        {"step": 5},
    ):
        other = rng.bits(64, **(base | change))
        assert (first == other).sum() == 0, change
    assert first.unique().numel() == 64


def test_uniform_is_inside_the_open_interval_and_exact():
    u = rng.uniform((4096,), seed=9, sample_ids=range(8), stream=2, step=0)
    assert u.dtype is torch.float32
    assert 0.0 < float(u.min()) < float(u.max()) < 1.0
    odd = u.double() * 2**24
    assert bool((odd == odd.round()).all())
    assert bool((odd.long() % 2 == 1).all())
    extremes = rng._to_unit(torch.tensor([0, ALL])).to(torch.float32)
    assert extremes.tolist() == [2.0**-24, 1 - 2.0**-24]


def test_streams_are_numbered_for_ever():
    assert {s.name: int(s) for s in Stream} == {
        "VIDEO_NOISE": 0,
        "COND_NOISE": 1,
        "TIME": 2,
        "SIGMA_COND": 3,
        "DROPOUT": 4,
        "POSTERIOR": 5,
        "COND_POSTERIOR": 6,
        "TOKEN_NOISE": 7,
        "INIT_NOISE": 8,
        "SAMPLER_NOISE": 9,
        "ORDER": 10,
        "SHUFFLED_TIME": 11,
        "TOKEN_REPLACE": 12,
        "CONDITIONING_FRAME": 13,
        "PIXEL_NOISE": 14,
        "BATCH_ORDER": 15,
        "NETWORK_DROPOUT": 16,
        "TOKEN_SIGMA": 17,
    }


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation_is_a_permutation(n):
    order = rng.permutation(n, seed=5, epoch=2)
    assert order.dtype is torch.int64
    assert sorted(order.tolist()) == list(range(n))


def test_permutation_is_stable_and_depends_on_seed_and_epoch():
    assert rng.permutation(10, seed=0, epoch=0).tolist() == FROZEN_ORDER
    orders = {
        tuple(rng.permutation(10, seed=s, epoch=e).tolist()) for s in (0, 1, 2**32) for e in (0, 1)
    }
    assert len(orders) == 6


def test_permutation_sorts_unsigned_64_bit_keys():
    n = 50
    index = torch.arange(n)
    zero = torch.zeros_like(index)
    high, low, _, _ = rng.philox4x32((index, zero, zero + 10, zero + 7), (3, 0))
    keys = [(int(h) << 32) | int(w) for h, w in zip(high, low, strict=True)]
    assert rng.permutation(n, seed=3, epoch=7).tolist() == sorted(range(n), key=keys.__getitem__)


@pytest.mark.parametrize(
    "bad",
    [{"seed": 2**64}, {"step": -1}, {"step": 2**32}, {"sample_ids": [-1]}, {"sample_ids": [2**32]}],
)
def test_what_does_not_fit_its_word_is_refused(bad):
    good = {"seed": 1, "sample_ids": [2], "stream": 3, "step": 4}
    with pytest.raises(ConfigError, match="got"):
        rng.bits(4, **(good | bad))
