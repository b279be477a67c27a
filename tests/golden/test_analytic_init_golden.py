"""analytic_vp_A and analytic_ve_A: the estimators and the initial latents of the released code."""

import json

import pytest
import torch
from safetensors.torch import load_file

from cil import AnalyticInit, LatentMoments, VPSchedule

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def vp(golden):
    return load_file(golden / "analytic_vp_A.safetensors")


@pytest.fixture(scope="module")
def ve(golden):
    return load_file(golden / "analytic_ve_A.safetensors")


def test_vp_estimator(golden, vp):
    expected = json.loads((golden / "ddim_A.json").read_text())["analytic_vp"]
    moments = LatentMoments().update(vp["clips_cthw"].permute(0, 2, 1, 3, 4))
    assert moments.count == expected["n"]
    assert moments.variance == pytest.approx(expected["tr_cov_d_float64_two_pass"], rel=1e-12)
    mean = vp["Expectation_X0"][0].permute(1, 0, 2, 3)
    torch.testing.assert_close(moments.mean.float(), mean, **CLOSE)
    assert float(vp["Tr_Cov_d"]) == pytest.approx(moments.variance, rel=1e-6)


def test_ve_estimator(golden, ve):
    expected = json.loads((golden / "svd_sampler_analytic_A.json").read_text())["analytic_ve"]
    moments = LatentMoments()
    for clip in ve["clips_tchw"]:
        moments.update(clip[None])
    assert moments.count == expected["n"]
    assert moments.variance == pytest.approx(expected["trCov_d_float64_two_pass"], rel=1e-12)
    torch.testing.assert_close(moments.mean.float(), ve["Expectation_x_0"], **CLOSE)


@pytest.mark.parametrize("start", [1000, 940, 900, 800])
@pytest.mark.parametrize("name", ["zsnr", "plain"])
@pytest.mark.filterwarnings("ignore:Analytic-Init changes nothing")
def test_vp_initial_latents(golden, vp, start, name):
    """The release has no dynamic rescale of the statistics, so base_scale is 1 here."""
    schedule = VPSchedule(zero_terminal_snr=name == "zsnr")
    analytic = AnalyticInit.load(golden / "analytic_vp_A.safetensors")
    eps = vp["eps"].permute(0, 2, 1, 3, 4)
    got = analytic.start(eps, schedule=schedule, level=schedule.start_level(start / 1000))
    expected = vp[f"init_{name}_M{start}"].permute(0, 2, 1, 3, 4)
    torch.testing.assert_close(got, expected, **CLOSE)
    if name == "zsnr" and start == 1000:
        assert torch.equal(got, eps)


@pytest.mark.parametrize("sigma_max", [700, 100, 60, 20])
def test_ve_initial_latents(golden, ve, sigma_max):
    """Released init_noise_sigma is sqrt(sigma_max^2 + 1), one more than the marginal has."""
    analytic = AnalyticInit.load(golden / "analytic_ve_A.safetensors")
    released = analytic.draw(ve["eps"], alpha=1.0, sigma=(sigma_max**2 + 1) ** 0.5)
    torch.testing.assert_close(released, ve[f"init_intended_sigma{sigma_max}"], **CLOSE)
    swapped = ve[f"init_as_released_swapped_sigma{sigma_max}"]
    assert float((released - swapped).abs().max()) > 0.01
    exact = analytic.draw(ve["eps"], alpha=1.0, sigma=float(sigma_max))
    assert float((exact - released).abs().max()) < 4.0 / sigma_max
