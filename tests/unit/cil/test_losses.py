import pytest
import torch

from cil import (
    DataError,
    EDMSchedule,
    Parameterization,
    Stream,
    TimeNoiseConfig,
    denoising_loss,
    draw_training,
    loss_by_quantile,
    rng,
)
from cil.parameterization import denoised_scales, edm_weight

SCHEDULE = EDMSchedule(p_mean=1.0, p_std=1.4)
SHAPE = (3, 2, 4, 4)


def run(network, ids=(0, 1, 2, 3), preset="mild", clean=None, step=0, **kwargs):
    corruption = TimeNoiseConfig(preset=preset, target=kwargs.pop("target", None)).build(SCHEDULE)
    tokens = kwargs.get("tokens") if kwargs.pop("draw_tokens", True) else None
    draws = draw_training(
        SHAPE,
        schedule=SCHEDULE,
        corruption=corruption,
        seed=7,
        sample_ids=ids,
        step=step,
        token_shape=tokens.shape[1:] if isinstance(tokens, torch.Tensor) else None,
    )
    clean = torch.ones(len(ids), *SHAPE) if clean is None else clean
    return draws, denoising_loss(
        network,
        clean,
        clean[:, :1],
        schedule=SCHEDULE,
        parameterization=Parameterization.EDM,
        corruption=corruption,
        draws=draws,
        **kwargs,
    )


def test_edm_loss_is_the_weighted_loss_of_the_denoised_latents():
    clean = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))

    def network(inputs):
        return 0.3 * inputs.noisy + 0.1 * inputs.conditioning_latents + 0.2

    seen = []
    draws, result = run(
        lambda inputs: (seen.append(inputs), network(inputs))[1], clean=clean, dropout=0.5
    )
    sigma = draws.level
    skip, out = denoised_scales(Parameterization.EDM, torch.ones_like(sigma), sigma)

    def wide(values):
        return values.reshape(-1, 1, 1, 1, 1)

    noisy = clean + wide(sigma) * draws.noise
    torch.testing.assert_close(seen[0].noisy, noisy / wide((1 + sigma**2).sqrt()))
    denoised = wide(skip) * noisy + wide(out) * network(seen[0])
    expected = edm_weight(sigma) * (denoised - clean).square().flatten(1).mean(1)
    torch.testing.assert_close(result.per_sample, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.loss, expected.mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.rank, SCHEDULE.rank(sigma))


def test_a_perfect_network_has_no_loss():
    clean = torch.randn(4, *SHAPE)
    corruption = TimeNoiseConfig().build(SCHEDULE)
    draws = draw_training(
        (4, *SHAPE), schedule=SCHEDULE, corruption=corruption, seed=1, sample_ids=range(4), step=5
    )
    s = draws.level.reshape(-1, 1, 1, 1, 1)
    perfect = (-s * clean + draws.noise) / (1 + s**2).sqrt()
    result = denoising_loss(
        lambda inputs: perfect,
        clean,
        clean[:, :1],
        schedule=SCHEDULE,
        parameterization=Parameterization.EDM,
        corruption=corruption,
        draws=draws,
    )
    assert float(result.loss) < 1e-10


@pytest.mark.parametrize("preset", ["mild", "shuffled", "lognormal", "paper-svd"])
def test_the_loss_of_a_clip_does_not_depend_on_its_batch(preset):
    def network(inputs):
        return inputs.noisy + inputs.conditioning_latents

    _, whole = run(network, preset=preset, dropout=0.3)
    parts = [run(network, ids=ids, preset=preset, dropout=0.3)[1] for ids in ((0,), (1, 2), (3,))]
    assert torch.equal(whole.per_sample, torch.cat([part.per_sample for part in parts]))
    _, later = run(network, preset=preset, step=1)
    assert bool((later.per_sample != whole.per_sample).all())


def test_dropout_zeroes_latents_and_tokens_but_tells_sigma_cond():
    seen = []

    def network(inputs):
        seen.append(inputs)
        return inputs.noisy

    tokens = torch.ones(4, 5, 6)
    _, result = run(network, dropout=1.0, tokens=tokens, target="both")
    assert float(seen[0].conditioning_latents.abs().max()) == 0.0
    assert float(seen[0].tokens.abs().max()) == 0.0
    assert bool((seen[0].sigma_cond > 0).all())
    assert result.keep.tolist() == [0.0] * 4
    _, kept = run(network, dropout=0.0, tokens=tokens, target="both")
    assert kept.keep.tolist() == [1.0] * 4
    assert float(seen[1].tokens.std()) > 0.1


def test_every_draw_comes_from_its_own_stream():
    """Fails when two draws share a stream, for example video and conditioning noise."""
    corruption = TimeNoiseConfig(noise="per_frame", target="both").build(SCHEDULE)
    kwargs = {"seed": 5, "sample_ids": [3, 8], "step": 2}
    draws = draw_training(
        SHAPE, schedule=SCHEDULE, corruption=corruption, token_shape=(5, 6), **kwargs
    )
    normals = {
        "noise": (SHAPE, Stream.VIDEO_NOISE),
        "cond_noise": (SHAPE, Stream.COND_NOISE),
        "token_noise": ((5, 6), Stream.TOKEN_NOISE),
        "normal": ((), Stream.SIGMA_COND),
    }
    for name, (shape, stream) in normals.items():
        expected = rng.normal(shape, stream=stream, **kwargs)
        assert torch.equal(getattr(draws, name), expected), name
    for name, stream in (("level", Stream.TIME), ("other_level", Stream.SHUFFLED_TIME)):
        expected = SCHEDULE.level(rng.uniform((), stream=stream, **kwargs))
        assert torch.equal(getattr(draws, name), expected), name
    assert torch.equal(draws.dropout, rng.uniform((), stream=Stream.DROPOUT, **kwargs))


def test_shuffled_looks_at_the_unrelated_level_only():
    draws, result = run(lambda inputs: inputs.noisy, preset="shuffled")
    law = TimeNoiseConfig(preset="mild").law()
    t = SCHEDULE.rank(draws.other_level)
    torch.testing.assert_close(result.sigma_cond, law.sigma_cond(t, draws.normal))
    draws, result = run(lambda inputs: inputs.noisy, preset="mild")
    t = SCHEDULE.rank(draws.level)
    torch.testing.assert_close(result.sigma_cond, law.sigma_cond(t, draws.normal))


def test_dropout_per_batch_is_one_decision():
    corruption = TimeNoiseConfig().build(SCHEDULE)
    kwargs = {"schedule": SCHEDULE, "corruption": corruption, "seed": 0}
    one = draw_training(SHAPE, sample_ids=range(8), step=3, dropout_per_batch=True, **kwargs)
    assert one.dropout.unique().numel() == 1
    other = draw_training(SHAPE, sample_ids=[99], step=3, dropout_per_batch=True, **kwargs)
    assert one.dropout[0] == other.dropout[0]
    each = draw_training(SHAPE, sample_ids=range(8), step=3, **kwargs)
    assert each.dropout.unique().numel() == 8


def test_tokens_can_be_made_from_the_noised_condition():
    seen = []

    def network(inputs):
        seen.append(inputs)
        return inputs.noisy

    run(network, tokens=lambda latents: latents[:, 0].flatten(2))
    expected = seen[0].conditioning_latents[:, 0].flatten(2)
    assert torch.equal(seen[0].tokens, expected)
    assert float(expected.std()) > 0.1


def test_gradients_reach_the_network_only():
    weight = torch.ones((), requires_grad=True)
    _, result = run(lambda inputs: weight * inputs.noisy)
    result.loss.backward()
    assert weight.grad is not None
    assert bool(torch.isfinite(weight.grad))
    assert not result.per_sample.requires_grad


def test_half_precision_is_summed_in_float32():
    _, result = run(lambda inputs: inputs.noisy, clean=torch.ones(4, *SHAPE, dtype=torch.bfloat16))
    assert result.loss.dtype is torch.float32


def test_wrong_shapes_are_refused():
    with pytest.raises(DataError, match="the network must return"):
        run(lambda inputs: inputs.noisy[:, :1])
    with pytest.raises(DataError, match="noise must have F"):
        run(lambda inputs: inputs.noisy, clean=torch.ones(4, 5, 2, 4, 4))
    with pytest.raises(DataError, match="give token_shape"):
        run(
            lambda inputs: inputs.noisy,
            tokens=torch.ones(4, 2, 3),
            target="both",
            draw_tokens=False,
        )


def test_losses_are_binned_by_quantile():
    sums, counts = loss_by_quantile(
        torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 0.26, 0.3, 1.0]), 4
    )
    assert sums.tolist() == [1.0, 5.0, 0.0, 4.0]
    assert counts.tolist() == [1, 2, 0, 1]
