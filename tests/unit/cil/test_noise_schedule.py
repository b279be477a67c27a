import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cil import ConfigError, EDMSchedule

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
