"""Training of the wan family: its loss, its times, what is adapted."""

import pytest
import torch
from diffusers import WanTransformer3DModel

import cil.models
from cil.analytic_init import AnalyticInit
from cil.errors import ConfigError, DataError
from cil.generate import generate_latents
from cil.rng import Stream, normal
from tests.unit.cil.models.wan.toy import LATENTS, SIZE, Recorder, conditions, loss_of, random


def test_time_noise_is_on_all_conditioning_latents_and_not_on_the_mask(model):
    recorder = Recorder()
    result, draws, tokens = loss_of(model, recorder)
    hidden = recorder.seen["hidden_states"].transpose(1, 2)
    sigma = result.sigma_cond.reshape(2, 1, 1, 1, 1)
    assert draws.cond_noise.shape == (2, *LATENTS), "noise of its own for each frame"
    torch.testing.assert_close(
        hidden[:, :, 8:], random(2, *LATENTS, seed=3) + sigma * draws.cond_noise
    )
    assert torch.equal(hidden[:, :1, 4:8], torch.ones(2, 1, 4, 8, 12))
    assert not hidden[:, 1:, 4:8].any()
    assert torch.equal(recorder.seen["encoder_hidden_states_image"], tokens)
    loss_of(model, recorder, target="both")
    assert not torch.equal(recorder.seen["encoder_hidden_states_image"], tokens)


def test_loss_and_gradient_are_those_of_a_loop_by_hand(toy_wan):
    """Flow matching written out: t shifted, noisy a line, the velocity noise - clean."""
    ours = cil.models.load("wan", toy_wan, **SIZE)
    result, draws, tokens = loss_of(ours, None)
    result.loss.backward()
    theirs = WanTransformer3DModel.from_pretrained(toy_wan / "transformer")
    losses = []
    for row in range(2):
        clean, shown = random(2, *LATENTS, seed=2)[row], random(2, *LATENTS, seed=3)[row]
        t, noise = draws.level[row], draws.noise[row]
        sigma = float(result.sigma_cond[row])
        noisy = (1.0 - t) * clean + t * noise
        shown = shown + sigma * draws.cond_noise[row]
        mask = torch.zeros(3, 4, 8, 12)
        mask[0] = 1.0
        velocity = theirs(
            hidden_states=torch.cat([noisy, mask, shown], dim=1).transpose(0, 1)[None],
            timestep=(1000.0 * t)[None],
            encoder_hidden_states=conditions().text_embeds[row : row + 1],
            encoder_hidden_states_image=tokens[row : row + 1],
        ).sample[0]
        losses.append((velocity.transpose(0, 1) - (noise - clean)).square().mean())
    by_hand = torch.stack(losses).mean()
    by_hand.backward()
    torch.testing.assert_close(result.loss, by_hand, rtol=1e-5, atol=1e-6)
    gradients = dict(theirs.named_parameters())
    for name, value in ours.network.named_parameters():
        torch.testing.assert_close(value.grad, gradients[name].grad, rtol=1e-4, atol=1e-6)
        assert value.grad.any() or name.endswith("to_k.bias"), name


def test_training_times_are_shifted_towards_noise(model):
    uniform = (torch.arange(1000) + 0.5) / 1000
    levels = model.schedule.level(uniform)
    assert float(levels.median()) == pytest.approx(3 * 0.5 / (1 + 2 * 0.5), abs=1e-3)


def test_sampling_starts_at_the_shifted_time_from_the_gaussian_of_the_data(
    model, image, monkeypatch
):
    statistics = AnalyticInit(random(*LATENTS, seed=5), 0.3)
    first = []

    def denoise(noisy, level, condition, **_):
        first.append((noisy, float(level)))
        return noisy

    monkeypatch.setattr(model, "denoise", denoise)
    generate_latents(
        model,
        image,
        seed=7,
        sample_ids=[0],
        start_time=0.9,
        analytic_init=statistics,
        num_steps=2,
    )
    t = 3 * 0.9 / (1 + 2 * 0.9)
    noise = normal(LATENTS, seed=7, sample_ids=[0], stream=Stream.INIT_NOISE, step=0)
    spread = (t**2 + (1 - t) ** 2 * 0.3) ** 0.5
    noisy, level = first[0]
    assert level == pytest.approx(t, rel=1e-6)
    torch.testing.assert_close(noisy[0], (1 - t) * statistics.mean + spread * noise[0])
    assert first[1][1] == pytest.approx(3 * 0.45 / (1 + 2 * 0.45), rel=1e-6)


def test_clips_without_captions_or_with_others_are_refused(model):
    with pytest.raises(DataError, match=r"512 tokens.* have none"):
        model.network_call(conditions(text_embeds=None))
    with pytest.raises(DataError, match=r"have 77 tokens"):
        model.network_call(conditions(text_embeds=random(2, 77, 16)))


def test_checkpointing_computes_again_and_changes_nothing(toy_wan):
    model = cil.models.load("wan", toy_wan, **SIZE)
    model.network.train()

    def gradients():
        model.network.zero_grad()
        loss_of(model, None)[0].loss.backward()
        return {name: value.grad.clone() for name, value in model.network.named_parameters()}

    plain = gradients()
    calls = []
    model.network.blocks[0].ffn.register_forward_hook(lambda *_: calls.append(1))
    model.network.enable_gradient_checkpointing()
    for name, value in gradients().items():
        torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-7)
    assert len(calls) == 2, "once forward, and again in the backward pass"


def test_there_are_no_temporal_parameters(model):
    with pytest.raises(ConfigError, match="use 'lora'"):
        model.temporal_parameters()


def test_lora_adapts_every_attention(model):
    linear = [
        name
        for name, layer in model.network.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.endswith(model.lora_targets())
    ]
    assert len(linear) == 2 * (4 + 4 + 2)
    assert "blocks.1.attn2.add_v_proj" in linear
