import dataclasses
from importlib.util import find_spec

import pytest
import torch

from cil import EDMSchedule, Parameterization, TimeNoiseConfig, denoising_loss, draw_training
from cil.errors import ConfigError, DataError
from cil.network_input import build_input
from cil.noise_schedule import FlowSchedule, VPSchedule
from pipelines import fused_input
from pipelines.fused_input import choose_impl

SHAPE = (3, 2, 4, 6)
EDM = EDMSchedule(p_mean=0.5, p_std=1.4, sigma_data=0.7)
VP = VPSchedule(zero_terminal_snr=True, base_scale=0.7)


def losses(schedule, parameterization, *, fused, tokens=None, dropout=0.0, sigma_data=0.7, **noise):
    """Return the loss with its gradient, and what the network was given."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randn(6, *SHAPE, generator=generator)
    conditioning = torch.randn(6, 1, *SHAPE[1:], generator=generator)
    time_map = "index" if isinstance(schedule, VPSchedule) else "rank"
    corruption = TimeNoiseConfig(**{"time_map": time_map, **noise}).build(schedule)
    draws = draw_training(
        clean.shape,
        schedule=schedule,
        corruption=corruption,
        seed=2**40 + 3,
        sample_ids=range(10, 16),
        step=5,
        token_shape=tokens.shape[1:] if isinstance(tokens, torch.Tensor) else None,
        with_noise=not fused,
    )
    factor = torch.tensor(0.5, requires_grad=True)
    seen = []

    def network(inputs):
        seen.append(inputs)
        return factor * (inputs.noisy + inputs.conditioning_latents)

    chosen = {"build_input": fused_input.build_input, "square_error": fused_input.square_error}
    result = denoising_loss(
        network,
        clean,
        conditioning,
        schedule=schedule,
        parameterization=parameterization,
        corruption=corruption,
        draws=draws,
        dropout=dropout,
        tokens=tokens,
        sigma_data=sigma_data,
        **(chosen if fused else {}),
    )
    result.loss.backward()
    return result, factor.grad, seen[0]


def assert_same_training(*arguments, **settings):
    plain, plain_grad, theirs = losses(*arguments, **settings, fused=False)
    fused, grad, ours = losses(*arguments, **settings, fused=True)
    for name in ("noisy", "conditioning_latents", "tokens"):
        a, b = getattr(ours, name), getattr(theirs, name)
        if b is None:
            assert a is None
            continue
        assert a.dtype == b.dtype
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5), name
    for name in ("time", "sigma_cond", "keep"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.allclose(fused.per_sample, plain.per_sample, rtol=1e-5)
    assert torch.allclose(grad, plain_grad, rtol=1e-5)
    return ours


@pytest.mark.parametrize(
    ("schedule", "parameterization"),
    [
        (EDM, Parameterization.EDM),
        (VP, Parameterization.V_PREDICTION),
        (VPSchedule(), Parameterization.EPSILON),
        (FlowSchedule(), Parameterization.FLOW),
    ],
)
@pytest.mark.parametrize("noise", ["shared", "per_frame", "scalar"])
def test_every_model_trains_the_same_with_the_fused_input(schedule, parameterization, noise):
    ours = assert_same_training(schedule, parameterization, noise=noise, dropout=0.4)
    assert 0 < ours.keep.sum() < 6


@pytest.mark.parametrize("preset", ["none", "constant", "shuffled", "lognormal", "cdm"])
def test_every_baseline_trains_the_same(preset):
    time_map = {} if preset in ("none", "lognormal", "cdm") else {"time_map": "rank"}
    assert_same_training(EDM, Parameterization.EDM, preset=preset, **time_map)


@pytest.mark.parametrize("target", ["latents", "tokens", "both"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_tokens_are_noised_and_dropped_the_same(target, dropout):
    tokens = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(4))
    assert_same_training(EDM, Parameterization.EDM, tokens=tokens, target=target, dropout=dropout)


def test_tokens_with_a_level_of_their_own_are_noised_the_same():
    tokens = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(4))
    own = {"target": "both", "token_beta_m": 40.0}
    assert_same_training(EDM, Parameterization.EDM, tokens=tokens, **own)
    ours, plain = (
        losses(EDM, Parameterization.EDM, fused=True, tokens=tokens, **noise)[2]
        for noise in (own, {"target": "both"})
    )
    assert torch.equal(ours.conditioning_latents, plain.conditioning_latents)
    spread, narrower = ((of.tokens - tokens).std() for of in (ours, plain))
    assert spread > 2 * narrower


def test_tokens_made_from_the_noised_latents_are_the_same():
    assert_same_training(
        EDM, Parameterization.EDM, tokens=lambda latents: latents[:, 0].flatten(2), dropout=0.4
    )


def test_dropped_tokens_are_zero_even_if_they_are_not_finite():
    tokens = torch.full((6, 3, 5), torch.nan)
    _, _, ours = losses(
        EDM, Parameterization.EDM, fused=True, tokens=tokens, dropout=1.0, target="latents"
    )
    assert (ours.tokens == 0).all()


def test_the_concatenated_input_is_not_copied():
    _, _, ours = losses(EDM, Parameterization.EDM, fused=True)
    together = ours.concatenated()
    assert together.data_ptr() == ours.noisy.data_ptr()
    assert torch.equal(together, torch.cat([ours.noisy, ours.conditioning_latents], dim=2))
    apart = dataclasses.replace(ours, stacked=None)
    assert torch.equal(apart.concatenated(), together)


@pytest.mark.parametrize(
    ("draw", "build", "complaint"),
    [
        ({"with_noise": False}, build_input, "with_noise=True"),
        ({"dropout_per_batch": True}, fused_input.build_input, r"needs draws\.counter"),
    ],
)
def test_each_needs_its_own_draws(draw, build, complaint):
    """Noise that nobody drew is an error, and so is dropout that the kernel cannot draw."""
    chosen = {"schedule": EDM, "corruption": TimeNoiseConfig().build(EDM)}
    draws = draw_training(SHAPE, **chosen, seed=1, sample_ids=[1], step=0, **draw)
    zero = torch.zeros(1, *SHAPE)
    with pytest.raises(DataError, match=complaint):
        denoising_loss(
            lambda inputs: inputs.noisy,
            zero,
            zero,
            **chosen,
            parameterization=Parameterization.EDM,
            draws=draws,
            build_input=build,
        )


# -- choice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("impl", "use_gpu", "chosen"),
    [
        ("auto", False, "torch"),
        ("auto", True, "triton"),
        ("torch", False, "torch"),
        ("torch", True, "torch"),
        ("triton", True, "triton"),
    ],
)
def test_auto_takes_triton_on_a_gpu(impl, use_gpu, chosen):
    assert find_spec("triton") is not None
    assert choose_impl(impl, use_gpu=use_gpu) == chosen


def test_triton_without_a_gpu_is_an_error():
    with pytest.raises(ConfigError, match=r"needs a GPU, got train\.use_gpu = False"):
        choose_impl("triton", use_gpu=False)


def test_triton_that_is_not_installed_is_an_error(monkeypatch):
    monkeypatch.setattr(fused_input, "find_spec", lambda name: None)
    assert choose_impl("auto", use_gpu=True) == "torch"
    with pytest.raises(ConfigError, match="pip install"):
        choose_impl("triton", use_gpu=True)


def test_an_unknown_impl_is_refused():
    with pytest.raises(ConfigError, match=r"time_noise\.impl must be one of auto, torch, triton"):
        TimeNoiseConfig(impl="cuda")
