"""The wan family samples what diffusers' own pipeline samples, and tells its network the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cil.generate import generate, generate_latents
from cil.losses import Counter
from cil.models import Guidance, ImageToVideoModel
from cil.rng import Stream, normal
from tests.unit.cil.models.wan.toy import GUIDED, LATENTS, Recorder, pipeline_of, random


@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_diffusers_samples_the_same_from_what_was_saved(model, image, saved, monkeypatch, scale):
    from PIL import Image

    pipeline = pipeline_of(saved, monkeypatch)
    noise = normal(LATENTS, seed=7, sample_ids=[0], stream=Stream.INIT_NOISE, step=0)

    def theirs(output_type):
        return pipeline(
            image=Image.fromarray(image),
            prompt="a red kite",
            height=32,
            width=48,
            num_frames=9,
            num_inference_steps=4,
            guidance_scale=scale,
            latents=noise.transpose(1, 2),
            output_type=output_type,
        ).frames

    guidance = Guidance(first=scale, last=scale)
    assert scale == 1.0 or model.guidance == guidance
    asked = {"seed": 7, "num_steps": 4, "guidance": guidance, "prompt": "a red kite"}
    latents = generate_latents(model, image, sample_ids=[0], **asked)
    torch.testing.assert_close(latents, theirs("latent").transpose(1, 2), rtol=1e-4, atol=1e-4)
    assert float((latents - noise).std()) > 0.1, "sampling moved them"
    ours = generate(model, image, **asked)[0]
    frames = theirs("np")[0]
    assert ours.shape == (9, 32, 48, 3)
    # ours is rounded to bytes
    assert np.abs(ours.numpy() / 255.0 - frames).max() <= 0.5 / 255 + 1e-4
    assert float(ours.float().std()) > 5, "a picture, not one colour"


def test_it_is_an_image_to_video_model(model):
    assert isinstance(model, ImageToVideoModel)
    assert model.latents_shape == LATENTS
    assert model.conditioning_scale == 1.0
    assert model.parameterization == "flow"
    assert model.schedule.shift == 3.0
    assert model.guidance == GUIDED
    assert model.token_shape == (257, 16)
    assert model.text_shape == (512, 16)


def test_the_network_is_told_what_the_pipeline_tells_it(model, image):
    recorder, noisy = Recorder(), random(2, *LATENTS)
    condition = model.clean_condition(image, num_clips=2, prompt="a red kite")
    level = torch.tensor([0.3, 0.9])
    denoised = model.denoise(noisy, level, condition, network=recorder)
    seen = recorder.seen
    hidden = seen["hidden_states"].transpose(1, 2)
    assert torch.equal(hidden[:, :, :4], noisy)
    assert torch.equal(hidden[:, 0, 4:8], torch.ones(2, 4, 8, 12))
    assert not hidden[:, 1:, 4:8].any()
    shown = model.first_stage.encode_conditioning(image, 9)
    torch.testing.assert_close(hidden[1, :, 8:], shown)
    torch.testing.assert_close(seen["timestep"], torch.tensor([300.0, 900.0]))
    assert seen["encoder_hidden_states"].shape == (2, 512, 16)
    assert seen["encoder_hidden_states_image"].shape == (2, 5, 16)
    assert seen["return_dict"] is False
    torch.testing.assert_close(denoised, noisy - level.reshape(2, 1, 1, 1, 1) * 0.5)


def test_the_output_moves_with_each_condition(model, image):
    noisy, level = random(1, *LATENTS), torch.tensor([0.5])
    told = model.clean_condition(image, prompt="a red kite")
    shown = told.conditioning_latents
    later = torch.cat([torch.zeros_like(shown[:, :1]), torch.ones_like(shown[:, 1:])], dim=1)
    changed = [
        replace(told, conditioning_latents=shown + 1.0 - later),
        replace(told, conditioning_latents=shown + later),
        replace(told, image_embeds=random(1, 5, 16, seed=6)),
        model.clean_condition(image),
    ]
    with torch.no_grad():
        plain = model.denoise(noisy, level, told)
        for other in changed:
            moved = model.denoise(noisy, level, other)
            assert float((moved - plain).norm() / plain.norm()) > 1e-3
        at_another = model.denoise(noisy, torch.tensor([0.7]), told)
    # the estimates differ by t anyway: compare the predictions
    one, two = (noisy - plain) / 0.5, (noisy - at_another) / 0.7
    assert float((one - two).norm() / one.norm()) > 1e-4


def test_guidance_takes_the_caption_away_and_leaves_the_image(model, image):
    condition = model.clean_condition(image, num_clips=2, prompt="a red kite")
    without = model.unconditional(condition)
    assert torch.equal(without.conditioning_latents, condition.conditioning_latents)
    assert torch.equal(without.image_embeds, condition.image_embeds)
    empty = model.clean_condition(image, num_clips=2)
    assert torch.equal(without.text_embeds, empty.text_embeds)
    assert not torch.equal(without.text_embeds, condition.text_embeds)


def test_training_drops_to_what_guidance_leads_away_from(model, image):
    told = model.clean_condition(image, num_clips=4, prompt="a red kite")
    without = model.unconditional(told)
    made = model.training_conditions(
        told,
        told.image_embeds,
        uniform=torch.tensor([0.05, 0.1, 0.0999, 0.9]),
        dropout=0.1,
        counter=Counter(seed=0, sample_ids=torch.arange(4), step=0),
    )
    for row, dropped in enumerate((True, False, True, False)):
        source = without if dropped else told
        assert torch.equal(made.clips.text_embeds[row], source.text_embeds[row])
    assert torch.equal(made.tokens, told.image_embeds)
    assert made.dropout == 0, "the loss drops nothing more, so the image stays"
