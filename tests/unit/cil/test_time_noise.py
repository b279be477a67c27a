import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cil import (
    PRESETS,
    ConfigError,
    EDMSchedule,
    NetworkInputs,
    Parameterization,
    TimeNoise,
    TimeNoiseConfig,
    VPSchedule,
    denoising_loss,
    draw_training,
)

SCHEDULE = EDMSchedule(p_mean=1.0, p_std=1.4)
SCHEDULES = {name: SCHEDULE for name in PRESETS} | {
    "paper-dynamicrafter": VPSchedule(zero_terminal_snr=True, base_scale=0.7),
    "paper-videocrafter": VPSchedule(base_scale=0.7),
}


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_mu_and_sigma_cond_by_hand():
    law = TimeNoise(15.0, a=2.0, mu_max=3.0, scale=0.5)
    t, normal = f64(0.0, 0.5, 1.0), f64(0.0, 1.0, -2.0)
    assert law.mu(t).tolist() == pytest.approx([-3.0, -1.5, 3.0])
    expected = 15.0 / (1 + torch.exp(-(law.mu(t) + 0.5 * normal)))
    torch.testing.assert_close(law.sigma_cond(t, normal), expected, rtol=1e-14, atol=0)


@given(
    t=st.floats(0, 100),
    normal=st.floats(-40, 40),
    beta_m=st.floats(1e-3, 1e3),
    a=st.floats(0.05, 20),
    mu_max=st.floats(0, 50),
)
def test_sigma_cond_is_finite_at_every_extreme(t, normal, beta_m, a, mu_max):
    value = TimeNoise(beta_m, a, mu_max).sigma_cond(
        torch.tensor([t], dtype=torch.float32), torch.tensor([normal], dtype=torch.float32)
    )
    assert 0.0 <= float(value) <= beta_m * (1 + 1e-6)


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_density_distribution_and_quantiles_belong_together(t):
    law = TimeNoise(7.0, a=1.5, mu_max=2.0, scale=0.8)
    t = f64(t)
    grid = torch.linspace(0, 7, 40_001, dtype=torch.float64)
    pdf = law.pdf(grid, t)
    total = torch.cumulative_trapezoid(pdf, grid)
    torch.testing.assert_close(total, law.cdf(grid[1:], t), rtol=0, atol=1e-6)
    q = f64(0.01, 0.3, 0.5, 0.99)
    torch.testing.assert_close(law.cdf(law.quantile(q, t), t), q)
    mean = torch.trapezoid(grid * pdf, grid)
    torch.testing.assert_close(law.mean(t)[0], mean, rtol=1e-6, atol=0)


def test_density_is_zero_outside_and_at_the_ends():
    law = TimeNoise(5.0)
    values = f64(-1.0, 0.0, 1e-300, 5.0 - 1e-15, 5.0, 6.0)
    pdf = law.pdf(values, f64(0.5))
    assert bool(torch.isfinite(pdf).all())
    assert pdf.tolist() == pytest.approx([0.0] * 6, abs=1e-9)
    assert law.cdf(values, f64(0.5)).tolist() == pytest.approx([0, 0, 0, 1, 1, 1], abs=1e-9)


@pytest.mark.parametrize(
    "bad",
    [
        {"beta_m": 0.0},
        {"beta_m": -3.0},
        {"beta_m": float("nan")},
        {"a": 0.0},
        {"a": float("inf")},
        {"mu_max": -1.0},
        {"scale": 0.0},
        {"noise": "same"},
        {"time_map": "t"},
        {"target": "image"},
    ],
)
def test_bad_parameters_are_refused_with_what_got_do(bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(ConfigError, match=f"{name} must be .* got {value!r}; ") as caught:
        TimeNoise(**({"beta_m": 5.0} | bad))
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_the_same_methods(name):
    law = TimeNoise.preset(name)
    t = torch.full((4,), 0.3)
    sigma_cond = law.sigma_cond(t, torch.randn(4), other_t=t)
    assert sigma_cond.shape == (4,)
    assert law.quantile(torch.full((4,), 0.5), t).shape == (4,)
    assert law.pdf(sigma_cond, t).shape == law.mean(t).shape == law.cdf(sigma_cond, t).shape == (4,)
    assert law.corrupt(torch.zeros(4, 2, 3, 5, 5), sigma_cond, torch.zeros(4, 2, 3, 5, 5)).shape


def test_presets_have_the_published_values():
    expected = {
        "paper-dynamicrafter": (100, 5, 1, 1, "per_frame", "index", "latents"),
        "paper-videocrafter": (100, 5, 4, 1, "per_frame", "index", "tokens"),
        "paper-svd": (15, 5, 1, 1, "scalar", "sigma", "latents"),
        "paper-svd-fixed": (15, 5, 1, 1, "shared", "rank", "latents"),
    }
    for name, (beta_m, a, mu_max, scale, noise, time_map, target) in expected.items():
        law = TimeNoise.preset(name)
        assert law == TimeNoise(beta_m, a, mu_max, scale, noise, time_map, target)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"one of none, mild.*got 'milder'"):
        TimeNoise.preset("milder")


@pytest.mark.parametrize("preset", ["none", "lognormal", "cdm"])
def test_a_parameter_that_a_preset_does_not_have_is_refused(preset):
    with pytest.raises(ConfigError, match=r"beta_m has no meaning for preset.*remove it"):
        TimeNoiseConfig(preset=preset, beta_m=2.0)


def test_index_time_needs_timesteps():
    with pytest.raises(ConfigError, match="set time_map to 'rank'"):
        TimeNoiseConfig(preset="paper-dynamicrafter").build(SCHEDULE)


def test_config_overrides_single_values():
    law = TimeNoiseConfig(preset="paper-svd", beta_m=3.0, noise="shared").law()
    assert law == TimeNoise(3.0, noise="shared", time_map="sigma")


def test_config_is_checked_by_pydantic():
    pydantic = pytest.importorskip("pydantic")
    adapter = pydantic.TypeAdapter(TimeNoiseConfig)
    assert adapter.validate_python({"preset": "mild", "beta_m": 3}).beta_m == 3.0
    for bad, words in (
        ({"beta": 3}, "Unexpected keyword"),
        ({"preset": "x"}, "paper-svd"),
        ({"a": -1}, "a must be > 0"),
    ):
        with pytest.raises(pydantic.ValidationError, match=words):
            adapter.validate_python(bad)


@pytest.mark.parametrize("preset", PRESETS)
def test_training_reads_the_same_for_every_preset(preset):
    schedule = SCHEDULES[preset]
    corruption = TimeNoiseConfig(preset=preset).build(schedule)
    shape = (4, 3, 2, 4, 4)
    draws = draw_training(
        shape,
        schedule=schedule,
        corruption=corruption,
        seed=0,
        sample_ids=range(4),
        step=0,
        token_shape=(5, 6),
    )
    seen: list[NetworkInputs] = []

    def network(inputs):
        seen.append(inputs)
        return torch.zeros(shape)

    result = denoising_loss(
        network,
        torch.ones(shape),
        lambda sigma_cond: sigma_cond.reshape(-1, 1, 1, 1, 1).expand(4, 1, 2, 4, 4),
        schedule=schedule,
        parameterization=Parameterization.V_PREDICTION,
        corruption=corruption,
        draws=draws,
        tokens=torch.zeros(4, 5, 6),
    )
    assert result.per_sample.shape == result.sigma_cond.shape == (4,)
    added = seen[0].conditioning_latents
    assert added.shape == shape
    assert bool(torch.isfinite(added).all())
    assert (preset == "none") == (float(added.abs().max()) == 0.0)
    assert (preset == "paper-videocrafter") == (float(seen[0].tokens.abs().max()) > 0.0)


def test_pixel_noise_needs_the_encoder():
    corruption = TimeNoiseConfig(preset="paper-svd-baseline").build(SCHEDULE)
    draws = draw_training(
        (3, 2, 4, 4), schedule=SCHEDULE, corruption=corruption, seed=0, sample_ids=[0], step=0
    )
    with pytest.raises(ConfigError, match=r"'pixels' needs the conditioning image.*got encoded"):
        denoising_loss(
            lambda inputs: inputs.noisy,
            torch.ones(1, 3, 2, 4, 4),
            torch.ones(1, 1, 2, 4, 4),
            schedule=SCHEDULE,
            parameterization=Parameterization.EDM,
            corruption=corruption,
            draws=draws,
        )
    images, noise, sigma_cond = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), torch.tensor([0.2])
    assert float(corruption.corrupt_pixels(images, sigma_cond, noise).mean()) == pytest.approx(0.2)
    clean = TimeNoiseConfig().build(SCHEDULE).corrupt_pixels(images, sigma_cond, noise)
    assert float(clean.abs().max()) == 0.0


def test_tokens_are_noised_only_where_the_target_says_so():
    sigma_cond, noise = torch.tensor([2.0]), torch.ones(1, 3, 4)
    latents = torch.zeros(1, 2, 1, 4, 4)
    for target, tokens_change, latents_change in (
        ("latents", False, True),
        ("tokens", True, False),
        ("both", True, True),
    ):
        corruption = TimeNoiseConfig(target=target).build(SCHEDULE)
        tokens = corruption.corrupt_tokens(torch.zeros(1, 3, 4), sigma_cond, noise)
        noised = corruption.corrupt(latents, sigma_cond, torch.ones_like(latents))
        assert bool((tokens != 0).all()) == tokens_change
        assert bool((noised != 0).all()) == latents_change


def test_tokens_have_their_own_level_where_it_is_asked_for():
    """The law of the latents is left as it was."""
    schedule = VPSchedule()
    level, normal = torch.tensor([100, 500, 900]), torch.tensor([0.3, -1.0, 0.7])
    given = (level, normal, level)
    plain = TimeNoiseConfig(preset="mild", target="both", time_map="index").build(schedule)
    assert torch.equal(plain.sigma_tokens(*given), plain.sigma_cond(*given))
    larger = TimeNoiseConfig(
        preset="mild", target="both", time_map="index", token_beta_m=20.0
    ).build(schedule)
    assert torch.equal(larger.sigma_cond(*given), plain.sigma_cond(*given))
    torch.testing.assert_close(larger.sigma_tokens(*given), 4 * plain.sigma_cond(*given))
    steeper = TimeNoiseConfig(
        preset="mild",
        target="both",
        time_map="index",
        token_preset="paper-videocrafter",
        token_beta_m=3.0,
    ).build(schedule)
    expected = TimeNoise(3.0, mu_max=4.0).sigma_cond(level / 1000, normal)
    torch.testing.assert_close(steeper.sigma_tokens(*given), expected)
    assert torch.equal(steeper.sigma_cond(*given), plain.sigma_cond(*given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"token_beta_m": 3.0}, "set time_noise.target to noise the image tokens"),
        ({"token_preset": "mild", "target": "pixels"}, "set time_noise.target to noise"),
        ({"token_beta_m": -3.0, "target": "both"}, "token_beta_m -3.0: .*beta_m must be > 0"),
        ({"token_preset": "cdm", "token_beta_m": 3.0, "target": "both"}, "no meaning for preset"),
    ],
)
def test_a_token_level_that_means_nothing_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        TimeNoiseConfig(preset="mild", **{"target": None, **given})


def test_a_token_level_of_its_own_is_drawn_for_itself():
    """Two draws, as the released code has them; what was drawn before stays the same."""
    schedule, ids = VPSchedule(), range(4000)
    seen = []

    def network(inputs):
        seen.append(inputs)
        return torch.zeros_like(inputs.noisy)

    def run(**own):
        config = TimeNoiseConfig(preset="paper-dynamicrafter", noise="scalar", **own)
        corruption = config.build(schedule)
        shared = {"schedule": schedule, "corruption": corruption}
        draws = draw_training(
            (1, 1, 1, 1), **shared, seed=3, sample_ids=ids, step=2, token_shape=(1, 40)
        )
        zero = torch.zeros(4000, 1, 1, 1, 1)
        return draws, denoising_loss(
            network,
            zero,
            zero,
            parameterization=Parameterization.EPSILON,
            draws=draws,
            tokens=torch.zeros(4000, 1, 40),
            **shared,
        )

    before, same = run(target="both")
    after, own = run(target="both", token_preset="paper-dynamicrafter")
    for name in ("level", "noise", "normal", "cond_noise", "token_noise", "dropout"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    assert torch.equal(own.sigma_cond, same.sigma_cond)

    shared_level, own_level = (
        seen[k].tokens[:, 0, 0] / before.token_noise[:, 0, 0] for k in range(2)
    )
    torch.testing.assert_close(shared_level, same.sigma_cond)
    rank = TimeNoise(100.0).cdf(own_level, before.level / 1000)
    assert float((rank - 0.5).abs().mean()) == pytest.approx(0.25, abs=0.01)
    assert abs(float(torch.corrcoef(torch.stack([rank, before.normal]))[0, 1])) < 0.06
