import pytest
import torch

from cil import ConfigError, DataError, LowPass, frame_guidance_scale, guide, karras_sigmas


def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, 3, 2, 4, 4, generator=generator)


def test_guidance_extrapolates():
    conditional, unconditional = pair()
    torch.testing.assert_close(guide(conditional, unconditional, 1.0), conditional)
    torch.testing.assert_close(guide(conditional, unconditional, 0.0), unconditional)
    expected = unconditional + 7.5 * (conditional - unconditional)
    torch.testing.assert_close(guide(conditional, unconditional, 7.5), expected)


def test_guidance_scale_may_differ_between_frames():
    conditional, unconditional = pair()
    scale = frame_guidance_scale(1.0, 3.0, 3)
    assert scale.tolist() == [1.0, 2.0, 3.0]
    got = guide(conditional, unconditional, scale)
    for frame in range(3):
        expected = guide(conditional, unconditional, float(scale[frame]))
        torch.testing.assert_close(got[:, frame], expected[:, frame])
    with pytest.raises(DataError, match="guidance_scale must have F = 3"):
        guide(conditional, unconditional, torch.ones(2))


def test_full_rescale_restores_the_standard_deviation():
    conditional, unconditional = pair()
    got = guide(conditional, unconditional, 7.5, rescale=1.0)
    axes = (1, 2, 3, 4)
    torch.testing.assert_close(got.std(axes), conditional.std(axes))
    half = guide(conditional, unconditional, 7.5, rescale=0.5)
    plain = guide(conditional, unconditional, 7.5)
    torch.testing.assert_close(half, 0.5 * got + 0.5 * plain)


def test_bad_guidance_is_refused():
    conditional, unconditional = pair()
    with pytest.raises(ConfigError, match=r"rescale must be in \[0, 1\], got 1.5"):
        guide(conditional, unconditional, 7.5, rescale=1.5)
    with pytest.raises(ConfigError, match="guidance_scale must be >= 0"):
        frame_guidance_scale(-1.0, 3.0, 4)
    with pytest.raises(ConfigError, match="num_frames must be >= 1"):
        frame_guidance_scale(1.0, 3.0, 0)
    for bad in ({"factor": 0.0}, {"factor": 1.5}, {"share": -0.1}, {"share": 1.1}):
        with pytest.raises(ConfigError, match=f"{next(iter(bad))} must be in"):
            LowPass(**bad)


def test_low_pass_removes_high_frequencies_only():
    x = torch.arange(32.0)
    coarse = torch.cos(2 * torch.pi * x / 32).expand(1, 1, 32, 32)
    fine = torch.cos(2 * torch.pi * x * 12 / 32).expand(1, 1, 32, 32)
    low_pass = LowPass(factor=0.4)
    assert float(low_pass.apply(coarse).std() / coarse.std()) > 0.9
    assert float(low_pass.apply(fine).std() / fine.std()) < 0.1
    flat = torch.full((2, 3, 4, 5, 7), 3.0)
    torch.testing.assert_close(low_pass.apply(flat), flat)
    assert LowPass(factor=1.0).apply(fine) is fine
    assert low_pass.apply(flat.to(torch.bfloat16)).dtype is torch.bfloat16


def test_low_pass_acts_in_the_early_steps():
    low_pass = LowPass(share=0.2)
    assert [low_pass.active(step, 10) for step in range(10)] == [True] * 2 + [False] * 8
    sigmas = karras_sigmas(10, 80.0)
    threshold = low_pass.threshold(sigmas)
    assert [bool(sigma >= threshold) for sigma in sigmas[:-1]] == [True] * 2 + [False] * 8
    assert LowPass(share=0.0).threshold(sigmas) == float("inf")
    assert LowPass(share=1.0).threshold(sigmas) <= float(sigmas[-2])
