import pickle

import pytest
import torch

from cil import (
    AnalyticInit,
    ConfigError,
    DataError,
    EDMSchedule,
    FlowSchedule,
    LatentMoments,
    VPSchedule,
)

SHAPE = (2, 3, 4, 5)


def clips(count, seed=0, offset=100.0):
    generator = torch.Generator().manual_seed(seed)
    position = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    return position * offset + torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)


def moments(latents, std=None):
    return LatentMoments().update(latents, std)


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
    with pytest.raises(DataError, match=r"of the statistics, got .*AnalyticInit.resized"):
        init().draw(torch.zeros(1, 2, 3, 4, 6), alpha=1.0, sigma=1.0)
    with pytest.raises(DataError, match="variance must be >= 0"):
        AnalyticInit(torch.zeros(SHAPE), -1.0)
    with pytest.raises(DataError, match="mean must be finite"):
        AnalyticInit(torch.full(SHAPE, float("inf")), 1.0)


def test_start_uses_the_schedules_scales():
    analytic, noise = init(), torch.randn(2, *SHAPE, dtype=torch.float64)
    edm = analytic.start(noise, schedule=EDMSchedule(), level=20.0)
    torch.testing.assert_close(edm, analytic.draw(noise, alpha=1.0, sigma=20.0))
    flow = analytic.start(noise, schedule=FlowSchedule(), level=0.9)
    torch.testing.assert_close(flow, analytic.draw(noise, alpha=0.1, sigma=0.9))
    vp = VPSchedule()
    a = float(vp.alphas_cumprod[939])
    torch.testing.assert_close(
        analytic.start(noise, schedule=vp, level=vp.start_level(0.94)),
        analytic.draw(noise, alpha=a**0.5, sigma=(1 - a) ** 0.5),
        rtol=1e-6,
        atol=1e-6,
    )


def test_start_honours_dynamic_rescale():
    """Training noises 0.7 times the clean latents, so the start must have 0.7 times their mean."""
    latents, noise = clips(50, offset=2.0), torch.zeros(1, *SHAPE, dtype=torch.float64)
    schedule = VPSchedule(zero_terminal_snr=True, base_scale=0.7)
    analytic = AnalyticInit.from_moments(moments(latents))
    start = analytic.start(noise, schedule=schedule, level=939)
    alpha = float(schedule.alphas_cumprod[939]) ** 0.5
    torch.testing.assert_close(start[0], 0.7 * alpha * latents.mean(0), rtol=1e-6, atol=1e-8)


def test_start_warns_where_it_is_the_identity():
    noise = torch.randn(1, *SHAPE, dtype=torch.float64)
    schedule = VPSchedule(zero_terminal_snr=True)
    with pytest.warns(UserWarning, match="changes nothing"):
        start = init().start(noise, schedule=schedule, level=schedule.start_level(1.0))
    torch.testing.assert_close(start, noise)


def test_resized_keeps_constants_and_ramps():
    flat = AnalyticInit(torch.full(SHAPE, 3.0), 0.5, {"count": "7"})
    other = flat.resized(5, 8, 2)
    assert other.mean.shape == (5, 3, 8, 2)
    torch.testing.assert_close(other.mean, torch.full((5, 3, 8, 2), 3.0, dtype=torch.float64))
    assert other.variance == 0.5
    assert other.metadata == {"count": "7", "resized_from": "2x3x4x5"}
    ramp = AnalyticInit(torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 2, 4, 4), 1.0)
    assert ramp.resized(5, 4, 4).mean[:, 0, 0, 0].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    column = AnalyticInit(torch.arange(4.0).expand(1, 1, 6, 4), 1.0)
    across = column.resized(1, 6, 8).mean[0, 0, 2]
    assert bool((across.diff() >= 0).all())
    with pytest.raises(ConfigError, match="sizes >= 1"):
        flat.resized(0, 4, 4)


@pytest.mark.parametrize(
    ("schedule", "levels"),
    [
        (EDMSchedule(), (701.0, 0.001, float("nan"))),
        (VPSchedule(), (1000, -1, 939.5)),
        (FlowSchedule(), (0.0, 1.5)),
    ],
)
def test_a_start_outside_the_schedule_is_refused(schedule, levels):
    for level in levels:
        with pytest.raises(ConfigError, match=r"the start level must be a .* got .*; "):
            init().start(torch.zeros(1, *SHAPE), schedule=schedule, level=level)
    at_end = schedule.start_level(1.0)
    schedule.check_level(at_end)


def test_variance_may_be_a_tensor_of_one_element():
    assert AnalyticInit(torch.zeros(SHAPE), torch.tensor([0.5])).variance == 0.5
