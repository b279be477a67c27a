"""The families dynamicrafter and videocrafter1: what is told, dropped, saved and refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModelWithProjection

import cil.models
from cil import rng
from cil.analytic_init import AnalyticInit
from cil.errors import ConfigError, DataError
from cil.generate import generate
from cil.models import ClipConditions, Condition, Guidance, ImageToVideoModel
from cil.models.condition_encoders import _CLIP_MEAN, _CLIP_STD, ImageEncoder, TextEncoder
from cil.models.lvdm_config import DynamiCrafterConfig
from cil.network_input import Counter
from cil.rng import Stream

FAMILIES = ("dynamicrafter", "videocrafter1")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(toy_lvdm, family):
    return cil.models.load(family, toy_lvdm[family])


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(3).integers(0, 255, (32, 32, 3), dtype=np.uint8)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def condition_of(model, batch=2):
    latents = drawn(batch, *model.latents_shape, seed=1)
    return Condition(
        conditioning_latents=latents,
        image_embeds=model.image_tokens(drawn(batch, 5, 32, seed=2)),
        text_embeds=drawn(batch, 77, 32, seed=3),
        fps=torch.tensor([7.6, 0.2]),
        motion_bucket_id=torch.tensor([127.0, 9.0]),
        frame_stride=torch.tensor([3.4, 12.0]),
        sigma_cond=torch.zeros(batch),
    )


def called_by_hand(model, noisy, level, *, context, latents, rate):
    """Call the network as the published code does."""
    if model.family == "dynamicrafter":
        seen = torch.cat([noisy, latents], dim=2).transpose(1, 2)
        out = model.network(seen, level, context, fs=rate)
    else:
        out = model.network(noisy.transpose(1, 2), level, context, fps=rate)
    return out.transpose(1, 2)


def denoised_by_hand(model, family, prediction, noisy, level):
    kept = model.schedule.alphas_cumprod[level].float()[:, None, None, None, None]
    if family == "dynamicrafter":
        return kept.sqrt() * noisy - (1 - kept).sqrt() * prediction
    return (noisy - (1 - kept).sqrt() * prediction) / kept.sqrt()


def test_it_is_an_image_to_video_model(model, family):
    assert isinstance(model, ImageToVideoModel)
    assert model.latents_shape == (4, 4, 8, 8)
    assert model.conditioning_scale == 0.18215
    assert model.schedule.base_scale == 0.7
    assert model.schedule.zero_terminal_snr == (family == "dynamicrafter")
    scale = 7.5 if family == "dynamicrafter" else 12.0
    rescale = 0.7 if family == "dynamicrafter" else 0.0
    assert model.guidance == Guidance(first=scale, last=scale, rescale=rescale)


@torch.no_grad()
def test_denoising_is_the_formula(model, family):
    condition, noisy = condition_of(model), drawn(2, *model.latents_shape)
    level = torch.tensor([940, 3])
    prediction = called_by_hand(
        model,
        noisy,
        level,
        context=torch.cat([condition.text_embeds, condition.image_embeds], dim=1),
        latents=condition.conditioning_latents,
        rate=torch.tensor([8, 1]),
    )
    expected = denoised_by_hand(model, family, prediction, noisy, level)
    found = model.denoise(noisy, level, condition)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_guidance_takes_caption_and_image_away_but_not_the_latents(model, family):
    condition, noisy = condition_of(model), drawn(2, *model.latents_shape)
    level, rate = torch.tensor([700, 300]), torch.tensor([8, 1])
    null = model.null_condition
    grey = model.image_projector(null.image_embeds[None]).expand(2, -1, -1)
    empty = null.text_embeds.expand(2, -1, -1)
    both = [
        called_by_hand(
            model,
            noisy,
            level,
            context=torch.cat([text, tokens], dim=1),
            latents=condition.conditioning_latents,
            rate=rate,
        )
        for text, tokens in ((condition.text_embeds, condition.image_embeds), (empty, grey))
    ]
    scale, phi = 7.5, 0.7
    guided = both[1] + scale * (both[0] - both[1])
    axes = (1, 2, 3, 4)
    ratio = both[0].std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    guided = phi * guided * ratio + (1 - phi) * guided
    expected = denoised_by_hand(model, family, guided, noisy, level)
    guidance = Guidance(first=scale, last=scale, rescale=phi)
    found = model.denoise(noisy, level, condition, guidance=guidance)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_the_frame_stride_can_be_told_in_place_of_the_rate(toy_lvdm):
    seen = []

    class Recorder(torch.nn.Module):
        def forward(self, x, timesteps, context, *, fs):
            seen.append(fs)
            return torch.zeros_like(x[:, :4])

    for told in ("fps", "frame_stride"):
        folder = toy_lvdm["dynamicrafter"]
        model = cil.models.load("dynamicrafter", folder, rate_condition=told, frame_stride=5)
        level = torch.tensor([5, 5])
        noisy = drawn(2, *model.latents_shape)
        model.denoise(noisy, level, condition_of(model), network=Recorder())
        condition = model.clean_condition(np.zeros((32, 32, 3), np.uint8), num_clips=2)
        model.denoise(noisy, level, condition, network=Recorder())
    assert [fs.tolist() for fs in seen] == [[8, 1], [model.config.fps] * 2, [3, 12], [5, 5]]
    assert seen[0].dtype == torch.int64


@torch.no_grad()
def test_the_null_condition_is_the_empty_caption_and_grey(model, toy_lvdm, family):
    folder, null = toy_lvdm[family], model.null_condition
    text = TextEncoder.from_folder(folder, layer="penultimate")
    assert torch.equal(null.text_embeds, text.encode("").tokens)
    assert null.text_embeds.shape == (77, 32)
    encoder = ImageEncoder.from_folder(folder, tokens="hidden")
    mean, std = (torch.tensor(c)[:, None, None] for c in (_CLIP_MEAN, _CLIP_STD))
    vision = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    grey = ((torch.full((1, 3, 32, 32), 0.5) - mean) / std).detach()
    expected = vision(grey, output_hidden_states=True).hidden_states[-1][0]
    torch.testing.assert_close(null.image_embeds, expected, rtol=0, atol=1e-5)
    nearly = encoder.encode(np.full((32, 32, 3), 128, np.uint8))
    assert not torch.equal(null.image_embeds, nearly)
    torch.testing.assert_close(null.image_embeds, nearly, rtol=0, atol=0.05)


def conditions(num_clips):
    rows = torch.ones(num_clips)
    return ClipConditions(
        fps=rows,
        motion_bucket_id=rows,
        frame_stride=rows,
        text_embeds=drawn(num_clips, 77, 32, seed=3),
    )


def test_text_and_image_are_dropped_by_the_published_rule(model):
    model.config = replace(model.config, image_token_replacement=0.0)
    clips, tokens = conditions(4), model.image_tokens(drawn(4, 5, 32, seed=2))
    made = model.training_conditions(
        clips,
        tokens,
        uniform=torch.tensor([0.02, 0.07, 0.12, 0.6]),
        dropout=0.05,
        counter=Counter(seed=1, sample_ids=torch.arange(4), step=0),
    )
    assert made.dropout == 0, "latents are never dropped"
    empty, grey = model.null_condition.text_embeds, model.unconditional(condition_of(model))
    for row, (text, image) in enumerate([(0, 1), (0, 0), (1, 0), (1, 1)]):
        expected = clips.text_embeds[row] if text else empty
        assert torch.equal(made.clips.text_embeds[row], expected), row
        expected = tokens[row] if image else grey.image_embeds[0]
        assert torch.equal(made.tokens[row], expected), row
    assert torch.equal(made.clips.fps, clips.fps)


def test_tokens_are_replaced_for_all_clips_of_a_step_or_none(model):
    model.config = replace(model.config, image_token_replacement=0.5)
    clips, tokens = conditions(3), model.image_tokens(drawn(3, 5, 32, seed=2))

    def made(step, places):
        rows = torch.tensor(places)
        return model.training_conditions(
            clips.rows(rows),
            tokens[rows],
            uniform=torch.ones(len(places)),
            dropout=0.0,
            counter=Counter(seed=1, sample_ids=rows, step=step),
        ).tokens

    replaced = 0
    for step in range(24):
        found = made(step, [0, 1, 2])
        assert torch.equal(torch.cat([made(step, [n]) for n in range(3)]), found)
        noise = rng.normal(
            tokens.shape[1:], seed=1, sample_ids=range(3), stream=Stream.TOKEN_NOISE, step=step
        )
        assert torch.equal(found, noise) or torch.equal(found, tokens)
        replaced += torch.equal(found, noise)
    assert 4 <= replaced <= 20


@torch.no_grad()
def test_frames_meet_in_the_temporal_parameters_alone(toy_lvdm, family):
    model = cil.models.load(family, toy_lvdm[family])
    names = model.temporal_parameters()
    weights = dict(model.network.named_parameters())
    assert 0 < len(names) < len(weights)
    context = torch.cat([drawn(1, 77, 32), model.image_tokens(drawn(1, 5, 32))], dim=1)
    clip = drawn(1, model.config.unet.in_channels, 4, 8, 8)
    other = clip.clone()
    other[:, :, 3] += 1

    def first_frames():
        return [model.network(x, torch.tensor([500]), context)[:, :, 0] for x in (clip, other)]

    assert not torch.allclose(*first_frames(), atol=1e-4)
    for name in names:
        weights[name].zero_()
    torch.testing.assert_close(*first_frames(), rtol=0, atol=1e-6)


def test_lora_reaches_every_attention(model):
    ends = tuple(f".{target}" for target in model.lora_targets())
    found = {n for n, _ in model.network.named_modules() if n.endswith(ends)}
    wanted = {
        name
        for name, module in model.network.named_modules()
        if isinstance(module, torch.nn.Linear) and (".attn1." in name or ".attn2." in name)
    }
    assert found == wanted
    assert any(name.endswith("to_k_ip") for name in found)


def test_a_saved_model_is_the_same_model(model, family, image, tmp_path):
    averaged = {name: value + 1 for name, value in model.network.state_dict().items()}
    model.save(tmp_path / "saved", state_dict=averaged)
    found = cil.models.load(family, tmp_path / "saved")
    assert found.config == model.config
    assert not found.network.training
    for name, value in found.network.state_dict().items():
        assert torch.equal(value, averaged[name]), name
    for name, value in found.image_projector.state_dict().items():
        assert torch.equal(value, model.image_projector.state_dict()[name]), name
        assert not value.requires_grad
    ours, theirs = (m.clean_condition(image, prompt="red kite") for m in (model, found))
    for name in ("conditioning_latents", "image_embeds", "text_embeds", "fps"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(found.null_condition.text_embeds, model.null_condition.text_embeds)
    model.save(tmp_path / "again", state_dict=averaged)
    files = [p for p in sorted((tmp_path / "saved").rglob("*")) if p.is_file()]
    for path in files:
        again = tmp_path / "again" / path.relative_to(tmp_path / "saved")
        assert path.read_bytes() == again.read_bytes(), path
    published = json.loads((tmp_path / "saved" / "unet" / "config.json").read_text())
    name = "fps_cond" if family == "videocrafter1" else "fs_condition"
    assert published[name] is True
    with pytest.raises(DataError, match="1 are missing or too many, the first is more"):
        model.save(tmp_path / "other", state_dict={**averaged, "more": torch.ones(1)})


@pytest.mark.parametrize("part", ["unet", "image_projector"])
def test_other_weights_are_refused(toy_lvdm, tmp_path, part):
    folder = shutil.copytree(toy_lvdm["dynamicrafter"], tmp_path / "copy")
    path = folder / part / WEIGHTS
    weights = load_file(path)
    first = next(iter(weights))
    save_file({n: v for n, v in weights.items() if n != first}, path)
    with pytest.raises(DataError, match="1 missing"):
        cil.models.load("dynamicrafter", folder)
    save_file({**weights, "more": torch.ones(1)}, path)
    with pytest.raises(DataError, match=r"1 unexpected \(more\)"):
        cil.models.load("dynamicrafter", folder)


def test_a_plan_needs_no_weights(toy_lvdm, family):
    model = cil.models.load(family, toy_lvdm[family], weights=False)
    assert {p.device.type for p in model.network.parameters()} == {"meta"}
    assert model.temporal_parameters()


@pytest.mark.parametrize("prompt", [None, "red kite"])
def test_a_video_is_sampled_from_the_start_time_that_is_asked(model, image, monkeypatch, prompt):
    seen, denoise = [], model.denoise
    monkeypatch.setattr(
        model, "denoise", lambda *a, **k: seen.append((a[0], a[1], a[2])) or denoise(*a, **k)
    )
    statistics = AnalyticInit(mean=drawn(*model.latents_shape, seed=9).double(), variance=0.5)
    frames = generate(
        model,
        image,
        seed=3,
        num_steps=2,
        start_time=0.94,
        analytic_init=statistics,
        prompt=prompt,
    )
    assert frames.shape == (1, 4, 32, 32, 3)
    assert [int(level) for _, level, _ in seen] == [939, 469]
    noise = rng.normal(
        model.latents_shape, seed=3, sample_ids=[0], stream=Stream.INIT_NOISE, step=0
    )
    kept = model.schedule.alphas_cumprod[939]
    expected = (kept.sqrt() * 0.7) * statistics.mean + noise * (1 - kept + 0.5 * kept * 0.49).sqrt()
    torch.testing.assert_close(seen[0][0], expected.float(), rtol=1e-5, atol=1e-5)
    told = seen[0][2].text_embeds[0]
    assert torch.equal(told, model.null_condition.text_embeds) == (prompt is None)


def test_what_is_missing_is_said(toy_lvdm, family, image, tmp_path):
    folder = shutil.copytree(toy_lvdm[family], tmp_path / "copy")
    (folder / "null_condition.safetensors").unlink()
    shutil.rmtree(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")
    model = cil.models.load(family, folder)
    with pytest.raises(ConfigError, match="does not know what to be told without a caption"):
        model.clean_condition(image)
    with pytest.raises(ConfigError, match="no text encoder, so there can be no prompt"):
        model.clean_condition(image, prompt="red kite")
    with pytest.raises(ConfigError, match="does not know what to be told without a caption"):
        model.training_conditions(
            conditions(1),
            model.image_tokens(drawn(1, 5, 32)),
            uniform=torch.zeros(1),
            dropout=0.05,
            counter=Counter(seed=1, sample_ids=torch.arange(1), step=0),
        )
    shutil.rmtree(folder / "image_encoder")
    with pytest.raises(ConfigError, match="no image encoder"):
        cil.models.load(family, folder).encode_condition(image)
    (folder / "null_condition.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot read"):
        cil.models.load(family, folder)


def test_settings_that_do_not_fit_are_refused(toy_lvdm):
    folder = toy_lvdm["dynamicrafter"]
    with pytest.raises(ConfigError, match=r"tokens for 4 frames .* set data.num_frames to 4"):
        cil.models.load("dynamicrafter", folder, num_frames=8)
    assert cil.models.load("videocrafter1", toy_lvdm["videocrafter1"], num_frames=8)
    with pytest.raises(DataError, match="got 'dynamicrafter' of format"):
        cil.models.load("videocrafter1", folder)
    with pytest.raises(ConfigError, match="unknown setting of dynamicrafter models: p_mean"):
        cil.models.load("dynamicrafter", folder, p_mean=1.0)
    for given, said in (
        ({"fps_cond": True, "fs_condition": False}, "fs_condition must be True, got False"),
        ({"in_channels": 4}, "in_channels must be 8, got 4"),
        ({"projector": {"output_dim": 7}}, "context_dim = 1024, got 7"),
        ({"projector": {"breadth": 7}}, "unknown setting of the image projector: breadth"),
        ({"height": 33}, "multiple of downsampling"),
        ({"rate_condition": "both"}, "rate_condition must be one of fps, frame_stride"),
        ({"guidance_rescale": 2}, "guidance_rescale must be in"),
        ({"sigma_max": 2}, "unknown setting sigma_max"),
    ):
        with pytest.raises(ConfigError, match=said):
            DynamiCrafterConfig.of(given)


def test_tokens_for_other_frames_are_refused(toy_lvdm):
    model = cil.models.load("dynamicrafter", toy_lvdm["dynamicrafter"])
    condition, noisy = condition_of(model), drawn(2, 2, *model.latents_shape[1:])
    condition = replace(condition, conditioning_latents=condition.conditioning_latents[:, :2])
    with pytest.raises(DataError, match="made 64 tokens, and clips of 2 frames need 16 for each"):
        model.denoise(noisy, torch.tensor([5, 5]), condition)
