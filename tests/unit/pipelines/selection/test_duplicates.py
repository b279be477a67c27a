import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.selection import duplicates
from pipelines.selection.duplicates import find_duplicates, hamming


def by_force(hashes, distance, num_settled=0):
    """The definition: compare each with all that is kept, an exact copy before the first."""
    kept, of = [], []
    for place, value in enumerate(map(int, hashes)):
        near = [k for k in kept if (int(hashes[k]) ^ value).bit_count() <= distance]
        same = [k for k in near if int(hashes[k]) == value]
        found = (same or near or [-1])[0] if place >= num_settled else -1
        if found == -1:
            kept.append(place)
        of.append(found)
    return of


def clusters(rng, number, spread):
    """Hashes in groups that differ in a few bits, some of them equal."""
    centres = rng.integers(0, 2**64, max(1, number // 6), np.uint64)
    hashes = rng.choice(centres, number)
    for _ in range(spread):
        flip = np.uint64(1) << rng.integers(0, 64, number).astype(np.uint64)
        hashes = np.where(rng.random(number) < 0.6, hashes ^ flip, hashes)
    return hashes


@pytest.fixture
def small_parts(monkeypatch):
    """Many blocks and parts, so that all their borders are met."""
    monkeypatch.setattr(duplicates, "_BLOCK", 16)
    monkeypatch.setattr(duplicates, "_ROWS", 5)
    monkeypatch.setattr(duplicates, "_PAIRS", 7)


@pytest.mark.parametrize("distance", [0, 1, 3, 4, 7, 8, 10])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_settled", [0, 1, 40])
def test_the_answer_is_that_of_comparing_all(small_parts, distance, seed, num_settled):
    rng = np.random.default_rng(seed)
    hashes = clusters(rng, 150, spread=distance + seed)
    found = find_duplicates(hashes, distance, num_settled=num_settled)
    expected = by_force(hashes, distance, num_settled)
    assert found.tolist() == expected
    assert len(set(expected)) > 5


bits = st.sampled_from([0, 1, 3, 7, 0xFFFF, 1 << 63, 2**64 - 1, 1 << 15, 1 << 16, 0x8001])


@given(st.lists(bits | st.integers(0, 2**64 - 1), max_size=30), st.integers(0, 12),
       st.integers(0, 30))  # fmt: skip
def test_the_answer_for_any_hashes(values, distance, num_settled):
    hashes = np.array(values, np.uint64)
    found = find_duplicates(hashes, distance, num_settled=num_settled)
    assert found.tolist() == by_force(hashes, distance, num_settled)


def test_whole_blocks_agree_with_comparing_all():
    rng = np.random.default_rng(5)
    hashes = clusters(rng, 9000, spread=6)
    found = find_duplicates(hashes, 6)
    kept = found < 0
    places = np.flatnonzero(kept)
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None, kept][:, :2000])
    early = places[:2000]
    near = (distances <= 6) & (early[None] < np.arange(len(hashes))[:, None])
    assert not near[kept].any()
    repeats = np.flatnonzero(~kept)
    assert (found[repeats] < repeats).all()
    assert kept[found[repeats]].all()
    assert (np.bitwise_count(hashes[repeats] ^ hashes[found[repeats]]) <= 6).all()


@pytest.mark.parametrize("distance", [0, 4])
def test_a_hundred_thousand_clips_take_seconds(distance):
    hashes = clusters(np.random.default_rng(0), 100_000, spread=3)
    start = time.process_time()
    found = find_duplicates(hashes, distance)
    assert time.process_time() - start < 20
    assert 0 < (found < 0).sum() < 100_000


def test_many_clips_that_all_look_alike():
    rng = np.random.default_rng(0)
    hashes = np.uint64(2**63) ^ (np.uint64(1) << rng.integers(0, 20, 50_000).astype(np.uint64))
    assert (find_duplicates(hashes, 4) < 0).sum() == 1


def test_distance_of_two_hashes():
    assert hamming("8000000000000000", "8000000000000000") == 0
    assert hamming("8000000000000000", "0000000000000003") == 3
    assert hamming("ffffffffffffffff", "0000000000000000") == 64
