import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cil import DataError, LatentMoments, jackknife, merged

SHAPE = (2, 3, 4, 5)


def clips(count, seed=0, offset=100.0):
    generator = torch.Generator().manual_seed(seed)
    position = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    return position * offset + torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)


def moments(latents, std=None):
    return LatentMoments().update(latents, std)


def assert_same(a, b):
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-12, atol=1e-12)
    assert a.variance == pytest.approx(b.variance, rel=1e-12)


def test_moments_equal_the_two_pass_formula():
    latents = clips(23)
    got = moments(latents)
    torch.testing.assert_close(got.mean, latents.mean(0), rtol=1e-13, atol=1e-13)
    assert got.variance == pytest.approx(float(latents.var(0, correction=0).mean()), rel=1e-12)
    assert got.count == 23


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 20), max_size=6), order=st.randoms(use_true_random=False))
def test_moments_do_not_depend_on_parts_and_order(cuts, order):
    latents = clips(20)
    edges = [0, *sorted(cuts), 20]
    parts = [moments(latents[a:b]) for a, b in itertools.pairwise(edges)]
    order.shuffle(parts)
    total = LatentMoments()
    for part in parts:
        total.merge(part)
    assert_same(total, moments(latents))


@given(sizes=st.tuples(*[st.integers(0, 4)] * 3))
def test_merge_is_associative(sizes):
    parts = [clips(size, seed=i) for i, size in enumerate(sizes)]
    left = moments(parts[0]).merge(moments(parts[1])).merge(moments(parts[2]))
    right = moments(parts[0]).merge(moments(parts[1]).merge(moments(parts[2])))
    assert left.count == right.count
    if left.count:
        assert_same(left, right)


def test_merge_leaves_the_other_alone():
    a, b = moments(clips(3, 1)), moments(clips(4, 2))
    before = b.mean.clone()
    a.merge(b)
    a.update(clips(2, 3))
    empty = LatentMoments().merge(b)
    empty.update(clips(2, 4))
    assert b.count == 4
    assert torch.equal(b.mean, before)


def test_the_state_is_contiguous_whatever_the_latents_are():
    latents = torch.randn(2, 3, 8, 8, 4, dtype=torch.float64).permute(0, 1, 4, 2, 3)
    moments = LatentMoments().update(latents)
    assert all(value.is_contiguous() for value in moments.state_dict().values())
    torch.testing.assert_close(moments.mean, latents.mean(dim=0))


def test_the_posterior_joins_by_the_law_of_total_variance():
    generator = torch.Generator().manual_seed(5)
    mean = clips(6, offset=1.0)
    std = torch.rand(6, *SHAPE, generator=generator, dtype=torch.float64)
    draws = torch.randn(4000, 6, *SHAPE, generator=generator, dtype=torch.float64) * std + mean
    got = moments(mean, std)
    sampled = moments(draws.flatten(0, 1))
    assert got.variance == pytest.approx(sampled.variance, rel=5e-3)
    exact = float((mean.var(0, correction=0) + std.square().mean(0)).mean())
    assert got.variance == pytest.approx(exact, rel=1e-12)


def test_empty_and_single_clip():
    empty = LatentMoments()
    assert empty.count == 0
    with pytest.raises(DataError, match="no clip yet"):
        _ = empty.mean
    with pytest.raises(DataError, match="no clip yet"):
        _ = empty.variance
    one = empty.update(clips(0)).update(clips(1))
    assert one.count == 1
    assert one.variance == 0.0


def test_state_round_trip():
    for original in (LatentMoments(), moments(clips(5))):
        copy = LatentMoments.from_state_dict(original.state_dict())
        assert copy.count == original.count
        assert_same(copy.merge(moments(clips(2, 9))), original.merge(moments(clips(2, 9))))
    with pytest.raises(DataError, match="'count'"):
        LatentMoments.from_state_dict({})
    with pytest.raises(DataError, match="'mean' and 'm2'"):
        LatentMoments.from_state_dict({"count": torch.tensor(3)})


def test_bad_latents_are_refused():
    good = clips(2)
    broken = good.clone()
    broken[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="finite, got NaN"):
        moments(broken)
    with pytest.raises(DataError, match=r"\(N F C H W\), got"):
        moments(good[0])
    with pytest.raises(DataError, match="one LatentMoments for each bucket"):
        moments(good).update(good[:, :1])
    with pytest.raises(DataError, match="std must have the shape"):
        moments(good, good[:1])
    with pytest.raises(DataError, match="std must be finite and >= 0"):
        moments(good, -good.abs() - 1)


def test_merged_leaves_its_parts_alone():
    parts = [moments(clips(3, 1)), LatentMoments(), moments(clips(4, 2))]
    assert merged(parts).count == 7
    assert [part.count for part in parts] == [3, 0, 4]


def test_jackknife_equals_leaving_out_by_hand():
    latents = clips(6, offset=1.0)
    got = jackknife([LatentMoments(), *(moments(latents[i : i + 2]) for i in (0, 2, 4))])
    assert got.num_parts == 3
    left_out = [torch.cat((latents[:i], latents[i + 2 :])) for i in (0, 2, 4)]
    variances = torch.stack([part.var(0, correction=0).mean() for part in left_out])
    assert got.variance == pytest.approx(
        float((2 / 3 * (variances - variances.mean()).square().sum()).sqrt())
    )


def test_jackknife_estimates_the_spread_of_repeated_estimates():
    """Fails when the factor (G - 1) / G is left out or G - 1 is used, by the bands below."""
    variances, means, errors = [], [], []
    for seed in range(60):
        generator = torch.Generator().manual_seed(1000 + seed)
        latents = torch.randn(40, *SHAPE, generator=generator, dtype=torch.float64)
        whole = moments(latents)
        variances.append(whole.variance)
        means.append(whole.mean)
        errors.append(jackknife([moments(part) for part in latents.split(4)]))
    spread = float(torch.tensor(variances).std())
    assert sum(e.variance for e in errors) / 60 == pytest.approx(spread, rel=0.25)
    mean_spread = float(torch.stack(means).var(0).mean().sqrt())
    assert sum(e.mean for e in errors) / 60 == pytest.approx(mean_spread, rel=0.05)


def test_one_part_has_no_standard_error():
    with pytest.raises(DataError, match="at least 2 parts with clips, got 1"):
        jackknife([moments(clips(3)), LatentMoments()])
