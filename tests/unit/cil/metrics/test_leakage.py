import pytest
import torch

from cil import DataError, EDMSchedule, VPSchedule
from cil.metrics import (
    condition_dominance,
    frame_difference_ratio,
    motion_transfer_ratio,
    probe_leakage,
    reliance,
)

SHAPE = (3, 4, 2, 5, 5)


def world(seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(SHAPE, generator=generator)
    return clean, clean[:, :1], torch.randn(SHAPE, generator=generator)


def probe(make_denoiser, level=None, schedule=None):
    clean, frame, noise = world()
    level = torch.full((3,), 2.0) if level is None else level
    return probe_leakage(
        make_denoiser, clean, frame, noise, schedule=schedule or EDMSchedule(), level=level
    )


def test_a_model_that_copies_the_video_transfers_all_motion():
    measures = probe(lambda index: lambda noisy, level: noisy).measures()
    assert measures["motion_transfer_ratio"] == pytest.approx(1.0, rel=1e-5)
    assert measures["condition_dominance"] == 0.0
    assert measures["one_step_mse"] == pytest.approx(float((2 * world()[2]).square().mean()))


def test_a_model_that_repeats_the_condition_transfers_none():
    frame = world()[1]

    def make(index):
        return lambda noisy, level: frame[index].expand(SHAPE)

    measures = probe(make).measures()
    assert measures["motion_transfer_ratio"] == 0.0
    assert measures["condition_dominance"] == 1.0
    assert measures["frame_difference_ratio"] == 0.0


def test_a_mixture_lies_between_by_its_share():
    frame = world()[1]

    def make(index):
        return lambda noisy, level: 0.25 * noisy + 0.75 * frame[index].expand(SHAPE)

    got = probe(make)
    assert got.measures()["motion_transfer_ratio"] == pytest.approx(0.25, rel=1e-5)
    clean, _, _ = world()
    swapped = clean.roll(-1, 0) - clean
    swapped_frame = (frame.roll(-1, 0) - frame).expand(SHAPE)
    by_condition = (0.75 * swapped_frame).square().sum()
    expected = by_condition / (by_condition + (0.25 * swapped).square().sum())
    assert got.measures()["condition_dominance"] == pytest.approx(float(expected), rel=1e-5)


def test_all_four_predictions_share_the_noise():
    got = probe(lambda index: lambda noisy, level: noisy)
    clean, frame, noise = world()
    torch.testing.assert_close(got.p - clean, 2 * noise)
    torch.testing.assert_close(got.p_static - frame, 2 * noise)
    torch.testing.assert_close(got.p_video_swapped - clean.roll(-1, 0), 2 * noise)
    assert torch.equal(got.p, got.p_condition_swapped)


def test_dynamic_rescale_belongs_to_the_level():
    schedule = VPSchedule(base_scale=0.7)
    got = probe(
        lambda index: lambda noisy, level: noisy, torch.tensor([0, 400, 999]), schedule=schedule
    )
    clean, _, noise = world()
    scale = torch.tensor([1.0, 0.7, 0.7]).reshape(3, 1, 1, 1, 1)
    torch.testing.assert_close(got.clean, scale * clean)
    alpha, sigma = (x.reshape(3, 1, 1, 1, 1) for x in schedule.scales(torch.tensor([0, 400, 999])))
    expected = alpha * scale * clean.roll(-1, 0) + sigma * noise
    torch.testing.assert_close(got.p_video_swapped, expected)


def test_measures_of_single_clips_make_up_the_whole():
    generator = torch.Generator().manual_seed(1)
    p, ps, x0 = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
    y = x0[:, 0]
    each = motion_transfer_ratio(p, ps, x0, y, per_clip=True)
    for i in range(3):
        one = motion_transfer_ratio(p[i : i + 1], ps[i : i + 1], x0[i : i + 1], y[i : i + 1])
        assert float(each[i]) == pytest.approx(float(one))
    assert condition_dominance(p, ps, x0, per_clip=True).shape == (3,)
    assert frame_difference_ratio(p, x0, per_clip=True).shape == (3,)


def test_reliance_is_one_for_bayes_and_zero_for_the_condition_alone():
    clean, frame, noise = world()
    mean = frame.expand(SHAPE)
    assert float(reliance(clean, clean, mean)) == pytest.approx(1.0)
    assert float(reliance(mean, clean, mean)) == 0.0
    assert float(reliance(0.4 * clean + 0.6 * mean, clean, mean)) == pytest.approx(0.4)
    assert reliance(noise, clean, mean, per_clip=True).shape == (3,)


def test_wrong_shapes_are_refused():
    clean, frame, noise = world()
    with pytest.raises(DataError, match="p must have the shape"):
        motion_transfer_ratio(clean[:1], clean, clean, frame)
    with pytest.raises(DataError, match="condition must have the shape"):
        motion_transfer_ratio(clean, clean, clean, clean)
    with pytest.raises(DataError, match="p_video_swapped must have"):
        condition_dominance(clean, clean, clean[:, :1])
    with pytest.raises(DataError, match="at least 2, got 1"):
        probe_leakage(
            lambda index: lambda noisy, level: noisy,
            clean[:1],
            frame[:1],
            noise[:1],
            schedule=EDMSchedule(),
            level=torch.ones(1),
        )
