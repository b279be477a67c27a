import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cil import ConfigError, EDMSchedule, FlowSchedule, VPSchedule

SCHEDULE = EDMSchedule(p_mean=1.0, p_std=1.4)


@given(t=st.floats(0.01, 0.99))
def test_edm_rank_and_sigma_are_inverse(t):
    t = torch.tensor([t], dtype=torch.float64)
    torch.testing.assert_close(SCHEDULE.rank(SCHEDULE.sigma_at(t)), t, rtol=1e-12, atol=1e-14)


def test_edm_rank_is_the_share_of_training_sigmas():
    normal = torch.randn(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = SCHEDULE.sigma(normal)
    for t in (0.1, 0.5, 0.9):
        at = SCHEDULE.sigma_at(torch.tensor(t, dtype=torch.float64))
        assert float((sigma < at).double().mean()) == pytest.approx(t, abs=0.01)


def test_edm_ranks_of_the_toy_study():
    sigma = SCHEDULE.sigma_at(torch.tensor([0.7, 0.8, 0.9], dtype=torch.float64))
    assert [round(s, 1) for s in sigma.tolist()] == [5.7, 8.8, 16.3]


def test_edm_sigma_at_is_capped():
    sigma = SCHEDULE.sigma_at(torch.tensor([0.0, 1.0]))
    assert sigma.tolist() == pytest.approx([0.002, 700.0])


def test_edm_level_inverts_the_training_distribution():
    u = torch.tensor([1e-6, 0.3, 0.999], dtype=torch.float64)
    torch.testing.assert_close(SCHEDULE.rank(SCHEDULE.level(u)), u)


def test_edm_time_maps():
    sigma = torch.tensor([0.0, 70.0, 1400.0])
    assert SCHEDULE.time(sigma, "sigma").tolist() == pytest.approx([0.0, 0.1, 2.0])
    assert torch.equal(SCHEDULE.time(sigma, "rank"), SCHEDULE.rank(sigma))
    with pytest.raises(ConfigError, match=r"'index' needs discrete timesteps.*set time_map"):
        SCHEDULE.time(sigma, "index")


@pytest.mark.parametrize(
    "bad",
    [
        {"p_std": 0.0},
        {"p_mean": float("nan")},
        {"sigma_data": -1.0},
        {"sigma_min": 0.0},
        {"sigma_max": 0.001},
        {"sigma_max": float("inf")},
    ],
)
def test_edm_refuses_what_cannot_be(bad):
    with pytest.raises(ConfigError, match=f"{next(iter(bad))} must be .* got"):
        EDMSchedule(**bad)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


ALL = [
    SCHEDULE,
    VPSchedule(),
    VPSchedule(zero_terminal_snr=True, base_scale=0.7),
    VPSchedule(beta_schedule="squaredcos_cap_v2", zero_terminal_snr=True),
    FlowSchedule(logit_mean=0.3, logit_std=0.8, shift=3.0),
]


@pytest.mark.parametrize("schedule", ALL)
@given(u=st.floats(0.001, 0.999))
def test_level_inverts_rank(schedule, u):
    level = schedule.level(f64(u))
    rank = schedule.rank(level.double())
    if isinstance(schedule, VPSchedule):
        assert 0 <= u - float(rank) < 1e-3
        assert level.dtype is torch.int64
    else:
        assert float(rank) == pytest.approx(u, rel=1e-10)


@pytest.mark.parametrize("schedule", ALL)
@given(u=st.floats(0.001, 0.9999))
def test_noise_to_signal_and_level_are_inverse(schedule, u):
    level = schedule.level(f64(u))
    alpha, sigma = schedule.scales(level.double())
    ratio = schedule.noise_to_signal(level.double())
    torch.testing.assert_close(ratio, sigma / alpha)
    back = schedule.level_of(ratio)
    torch.testing.assert_close(back.double(), level.double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "squaredcos_cap_v2"])
def test_every_vp_timestep_is_found_again(zero_snr, beta_schedule):
    schedule = VPSchedule(zero_terminal_snr=zero_snr, beta_schedule=beta_schedule)
    timesteps = torch.arange(1000)
    ratio = schedule.noise_to_signal(timesteps.double())
    assert torch.equal(schedule.level_of(ratio), timesteps)
    assert torch.equal(schedule.level_of(ratio.float()), timesteps)
    between = torch.sqrt(ratio[3:7] * ratio[4:8])
    assert torch.equal(schedule.level_of(between * 0.9999), timesteps[3:7])
    assert torch.equal(schedule.level_of(between * 1.0001), timesteps[4:8])
    assert schedule.level_of(f64(0.0, 1e30)).tolist() == [0, 998 if zero_snr else 999]


def test_vp_endpoints():
    plain, zero = VPSchedule(), VPSchedule(zero_terminal_snr=True)
    assert float(plain.alphas_cumprod[0]) == pytest.approx(1 - 0.00085)
    assert float(zero.alphas_cumprod[0]) == pytest.approx(1 - 0.00085)
    assert float(zero.alphas_cumprod[-1]) == 0.0
    alpha, sigma = zero.scales(torch.tensor([0, 500, 999]))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(3))
    assert alpha[2] == 0.0
    assert sigma[2] == 1.0
    assert zero.noise_to_signal(torch.tensor([999])).tolist() == [float("inf")]


def test_vp_time_is_the_index_over_the_count():
    timesteps = torch.tensor([0, 500, 999])
    for time_map in ("index", "rank"):
        assert VPSchedule().time(timesteps, time_map).tolist() == pytest.approx([0.0, 0.5, 0.999])
    with pytest.raises(ConfigError, match="'sigma' is for EDM"):
        VPSchedule().time(timesteps, "sigma")


def test_vp_levels_cover_every_timestep_equally():
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    counts = torch.bincount(VPSchedule().level(u), minlength=1000)
    assert counts.tolist() == [4] * 1000


def test_dynamic_rescale_goes_linearly_and_stays():
    schedule = VPSchedule(base_scale=0.7)
    scale = schedule.clean_scale(torch.tensor([0, 399, 400, 999]))
    assert scale.tolist() == pytest.approx([1.0, 0.7, 0.7, 0.7])
    assert float(schedule.clean_scale(torch.tensor([133]))) == pytest.approx(0.9)
    assert bool((VPSchedule().clean_scales == 1).all())


def test_flow_shift_moves_levels_up():
    t = f64(0.1, 0.5, 0.9)
    assert FlowSchedule(shift=3.0).shifted(t).tolist() == pytest.approx([0.25, 0.75, 27 / 28])
    schedule = FlowSchedule(shift=3.0)
    assert float(schedule.level(f64(0.5))) == pytest.approx(0.75)
    alpha, sigma = schedule.scales(t)
    torch.testing.assert_close(alpha + sigma, torch.ones_like(t))
    torch.testing.assert_close(schedule.time(t, "index"), t)
    torch.testing.assert_close(schedule.network_time(t), 1000 * t)
    with pytest.raises(ConfigError, match="'sigma' is for EDM"):
        schedule.time(t, "sigma")


def test_flow_rank_is_the_share_of_training_levels():
    schedule = FlowSchedule(logit_mean=-0.5, logit_std=1.2, shift=2.0)
    u = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    levels = schedule.level(u)
    for t in (0.2, 0.5, 0.8):
        share = float((levels < t).double().mean())
        assert float(schedule.rank(f64(t))) == pytest.approx(share, abs=0.01)


def test_start_levels():
    assert VPSchedule().start_level(1.0) == 999
    assert VPSchedule().start_level(0.94) == 939
    assert EDMSchedule().start_level(1.0) == pytest.approx(700.0)
    assert EDMSchedule().start_level(0.94) == pytest.approx(487.7, abs=0.05)
    assert FlowSchedule(shift=3.0).start_level(0.5) == pytest.approx(0.75)
    for schedule in ALL:
        for bad in (0.0, -0.1, 1.1, float("nan")):
            with pytest.raises(ConfigError, match=r"start_time must be in \(0, 1\], got"):
                schedule.start_level(bad)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: VPSchedule(beta_start=0.0), "beta_start"),
        (lambda: VPSchedule(beta_end=1.0), "beta_end"),
        (lambda: VPSchedule(beta_start=0.02), "beta_end"),
        (lambda: VPSchedule(num_train_timesteps=1), "num_train_timesteps"),
        (lambda: VPSchedule(base_scale=0.0), "base_scale"),
        (lambda: VPSchedule(rescale_steps=1), "rescale_steps"),
        (lambda: FlowSchedule(logit_std=0.0), "logit_std"),
        (lambda: FlowSchedule(logit_mean=float("inf")), "logit_mean"),
        (lambda: FlowSchedule(shift=-1.0), "shift"),
    ],
)
def test_other_schedules_refuse_what_cannot_be(make, name):
    with pytest.raises(ConfigError, match=f"{name}.* must be .* got"):
        make()
