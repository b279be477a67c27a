import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cil import AnalyticInit, ConfigError, DataError, LatentMoments

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


def init():
    return AnalyticInit.from_moments(moments(clips(7, offset=1.0)), {"dataset": "toy"})


def test_draw_follows_the_closed_form():
    analytic = init()
    noise = torch.randn(2, *SHAPE, dtype=torch.float64)
    got = analytic.draw(noise, alpha=0.6, sigma=0.8)
    expected = 0.6 * analytic.mean + (0.64 + 0.36 * analytic.variance) ** 0.5 * noise
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
    each = analytic.draw(noise, alpha=torch.tensor([0.6, 1.0]), sigma=torch.tensor([0.8, 5.0]))
    torch.testing.assert_close(each[0], expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(each[1:], analytic.draw(noise[1:], alpha=1, sigma=5.0))
    assert analytic.draw(noise.to(torch.bfloat16), alpha=1, sigma=5.0).dtype is torch.bfloat16


def test_scaled_statistics_are_those_of_scaled_latents():
    latents = clips(9)
    scaled = AnalyticInit.from_moments(moments(latents)).scaled(0.18215)
    direct = AnalyticInit.from_moments(moments(latents * 0.18215))
    torch.testing.assert_close(scaled.mean, direct.mean)
    assert scaled.variance == pytest.approx(direct.variance)


def test_own_file_keeps_every_bit(tmp_path):
    original = init()
    original.save(tmp_path / "a.safetensors")
    loaded = AnalyticInit.load(tmp_path / "a.safetensors")
    assert torch.equal(loaded.mean, original.mean)
    assert loaded.variance == original.variance
    assert loaded.metadata == {"count": "7", "dataset": "toy"}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("layout", "keys", "shape"),
    [
        ("dynamicrafter", ("Expectation_X0", "Tr_Cov_d"), (1, 3, 2, 4, 5)),
        ("svd", ("Expectation_x_0", "trCov_d"), (2, 3, 4, 5)),
    ],
)
def test_released_formats(tmp_path, layout, keys, shape, suffix):
    original = init()
    path = tmp_path / f"x{suffix}"
    original.export(path, layout=layout)
    if suffix == ".pt":
        raw = torch.load(path, weights_only=True)
        assert raw.keys() == set(keys)
        assert raw[keys[0]].shape == shape
    loaded = AnalyticInit.load(path)
    torch.testing.assert_close(loaded.mean, original.mean.float())
    assert loaded.variance == pytest.approx(original.variance, rel=1e-6)


def test_files_that_cannot_be_right_are_refused(tmp_path):
    good = tmp_path / "good.safetensors"
    init().save(good)
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-8])
    init().export(tmp_path / "good.pt", layout="svd")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:300])
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(init, protocol=2))
    torch.save({"Expectation_X0": torch.zeros(1)}, tmp_path / "keys.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save(
        {"Expectation_x_0": torch.zeros(()), "trCov_d": torch.zeros(SHAPE)}, tmp_path / "s.pt"
    )
    torch.save(
        {"Expectation_X0": torch.zeros(SHAPE), "Tr_Cov_d": torch.zeros(1)}, tmp_path / "d.pt"
    )
    for name, words in {
        "none.pt": "no statistics file",
        "cut.safetensors": "truncated",
        "cut.pt": "truncated",
        "evil.pt": "pickled objects, which are refused",
        "keys.pt": "is it a file of Analytic-Init statistics",
        "list.pt": "must hold a dict of tensors",
        "s.pt": "swaps mean and variance",
        "d.pt": "Expectation_X0 must have the shape",
    }.items():
        with pytest.raises(DataError, match=words):
            AnalyticInit.load(tmp_path / name)
    with pytest.raises(ConfigError, match="layout must be"):
        init().export(tmp_path / "x.pt", layout="diffusers")


def test_statistics_for_another_shape_are_refused():
    with pytest.raises(DataError, match="noise must have W = 5"):
        init().draw(torch.zeros(1, 2, 3, 4, 6), alpha=1.0, sigma=1.0)
    with pytest.raises(DataError, match="variance must be >= 0"):
        AnalyticInit(torch.zeros(SHAPE), -1.0)
    with pytest.raises(DataError, match="mean must be finite"):
        AnalyticInit(torch.full(SHAPE, float("inf")), 1.0)
