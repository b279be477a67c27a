"""Latents that are not finite, and other values that would spread silently, are refused by name."""

import pytest
import torch

from cil import AnalyticInit, TimeNoise, euler
from cil.errors import ConfigError, DataError
from cil.shapes import check_finite

SHAPE = (1, 2, 3, 4, 4)


def broken() -> torch.Tensor:
    latents = torch.zeros(SHAPE)
    latents[0, 1, 2, 3, 3] = torch.nan
    return latents


def test_the_message_counts_what_is_wrong():
    with pytest.raises(DataError, match="latents must be finite, got 1 of 96 values NaN"):
        check_finite("latents", broken())
    check_finite("latents", torch.zeros(SHAPE))


def test_samplers_and_the_start_refuse_nan():
    with pytest.raises(DataError, match="latents must be finite"):
        euler(lambda noisy, _: noisy, broken(), [1.0, 0.0])
    with pytest.raises(DataError, match="noise must be finite"):
        AnalyticInit(torch.zeros(SHAPE[1:]), 1.0).draw(broken(), alpha=1.0, sigma=1.0)


def test_a_denoiser_of_another_shape_is_refused():
    with pytest.raises(DataError, match=r"denoiser must return .* got \(1, 1, 3, 4, 4\)"):
        euler(lambda noisy, _: noisy[:, :1], torch.zeros(SHAPE), [1.0, 0.0])


@pytest.mark.parametrize("mu_max", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("a", [5.0, 13.0, 50.0])
def test_time_noise_stays_finite_in_float32_far_beyond_its_range(a, mu_max):
    law = TimeNoise(15.0, a=a, mu_max=mu_max, time_map="sigma")
    t = torch.tensor([0.0, 1.0, 1e6 / 700, 1e30])
    sigma_cond = law.sigma_cond(t, torch.zeros(4))
    assert bool(torch.isfinite(sigma_cond).all())
    assert bool((sigma_cond <= 15.0).all())
    assert sigma_cond[-1].item() == pytest.approx(15.0 if mu_max else 7.5)
    assert law.cdf(torch.full((4,), 15.0), t).tolist() == [1.0] * 4
    assert law.quantile(torch.zeros(4), t).tolist() == [0.0] * 4


def test_statistics_are_saved_under_their_own_suffix_only(tmp_path):
    with pytest.raises(ConfigError, match=r"must end in \.safetensors"):
        AnalyticInit(torch.zeros(SHAPE[1:]), 1.0).save(tmp_path / "statistics.pt")
    assert list(tmp_path.iterdir()) == []
