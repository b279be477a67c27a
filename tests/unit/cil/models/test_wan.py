"""The wan family against diffusers' own pipeline; what it tells the network and refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

import cil.models
from cil.analytic_init import AnalyticInit
from cil.errors import ConfigError, DataError
from cil.generate import generate, generate_latents
from cil.losses import Counter, denoising_loss, draw_training
from cil.models import ClipConditions, Guidance, ImageToVideoModel
from cil.models.null_condition import NullCondition
from cil.models.wan_config import PUBLISHED_NETWORK, WanConfig
from cil.models.wan_layers import WAN_KIND
from cil.rng import Stream, normal
from cil.time_noise import TimeNoiseConfig

SIZE = {"num_frames": 9, "height": 32, "width": 48, "downsampling": 4, "latent_channels": 4}
LATENTS = (3, 4, 8, 12)
GUIDED = Guidance(first=5.0, last=5.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(toy_wan):
    return cil.models.load("wan", toy_wan, **SIZE)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(3).integers(0, 255, (32, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan") / "saved"
    model.save(folder)
    return folder


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pipeline_of(folder, monkeypatch):
    """Open a folder by diffusers, with Euler's method on the times that our sampler visits."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
    from diffusers.pipelines.wan import pipeline_wan_i2v

    class EvenTimes(FlowMatchEulerDiscreteScheduler):
        def set_timesteps(self, count, device=None):  # the class shifts what it is given
            super().set_timesteps(sigmas=np.linspace(1.0, 1.0 / count, count), device=device)

    # it calls ftfy, also where that is not installed
    monkeypatch.setattr(pipeline_wan_i2v, "prompt_clean", lambda text: text)
    pipeline = WanImageToVideoPipeline.from_pretrained(folder)
    assert pipeline.scheduler.config.flow_shift == 3.0
    pipeline.scheduler = EvenTimes(shift=pipeline.scheduler.config.flow_shift)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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


class Recorder(torch.nn.Module):
    """Stands in for the network: keeps what it was given and answers with a constant."""

    def forward(self, **told):
        self.seen = told
        return (torch.full_like(told["hidden_states"][:, :4], 0.5),)


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


def conditions(count=2, **changes):
    return ClipConditions(
        **{
            "fps": torch.full((count,), 16.0),
            "motion_bucket_id": torch.ones(count),
            "frame_stride": torch.ones(count),
            "text_embeds": random(count, 512, 16, seed=1),
            **changes,
        }
    )


def loss_of(model, network, *, preset="mild", target="latents"):
    """Return the loss of two clips, what was drawn, and the corruption."""
    corruption = TimeNoiseConfig(preset=preset, noise="per_frame", target=target).build(
        model.schedule
    )
    tokens = random(2, 5, 16, seed=4)
    draws = draw_training(
        LATENTS,
        schedule=model.schedule,
        corruption=corruption,
        seed=3,
        sample_ids=[5, 9],
        step=11,
        token_shape=(5, 16),
    )
    result = denoising_loss(
        model.network_call(conditions(), network=network),
        random(2, *LATENTS, seed=2),
        random(2, *LATENTS, seed=3),
        schedule=model.schedule,
        parameterization=model.parameterization,
        corruption=corruption,
        draws=draws,
        tokens=tokens,
    )
    return result, draws, tokens


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


def test_saved_and_loaded_again_it_is_the_same(model, image, saved, tmp_path, toy_wan):
    again = cil.models.load("wan", saved)
    assert again.config == model.config
    one, two = (generate(m, image, seed=1, num_steps=1, start_time=0.9) for m in (model, again))
    assert torch.equal(one, two)
    again.save(tmp_path / "two")
    for part in ("transformer", "vae", "image_encoder", "text_encoder", "tokenizer", "scheduler"):
        names = sorted(path.name for path in (saved / part).iterdir())
        assert names == sorted(path.name for path in (tmp_path / "two" / part).iterdir())
        for name in names:
            one, two = saved / part / name, tmp_path / "two" / part / name
            assert one.read_bytes() == two.read_bytes(), name
            assert str(toy_wan).encode() not in one.read_bytes(), name


def test_a_state_dict_replaces_the_weights(model, tmp_path):
    state = {name: value * 0.5 for name, value in model.network.state_dict().items()}
    model.save(tmp_path / "half", state_dict=state)
    again = cil.models.load("wan", tmp_path / "half")
    for name, value in again.network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not torch.equal(next(iter(state.values())), next(model.network.parameters()))


def test_fresh_weights_depend_on_the_seed_alone(toy_wan):
    config = json.loads((toy_wan / "transformer" / "config.json").read_text())
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    before = torch.random.get_rng_state()
    states = [cil.models.build("wan", seed=s, **config).network.state_dict() for s in (4, 4, 5)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def parameters_of(p):
    """Count the parameters of a network by its description, layer by layer."""

    def linear(inputs, outputs):
        return (inputs + 1) * outputs

    inner = p["num_attention_heads"] * p["attention_head_dim"]
    attention = 4 * linear(inner, inner) + 2 * inner  # with the norms of queries and keys
    of_image = 2 * linear(p["added_kv_proj_dim"], inner) + inner
    feed_forward = linear(inner, p["ffn_dim"]) + linear(p["ffn_dim"], inner)
    block = 2 * attention + of_image + 2 * inner + feed_forward + 6 * inner
    patch = linear(p["in_channels"] * 4, inner) + linear(inner, p["out_channels"] * 4) + 2 * inner
    time = linear(p["freq_dim"], inner) + linear(inner, inner) + linear(inner, 6 * inner)
    text = linear(p["text_dim"], inner) + linear(inner, inner)
    image = 2 * p["image_dim"] + linear(p["image_dim"], p["image_dim"])
    image += linear(p["image_dim"], inner) + 2 * inner
    return p["num_layers"] * block + patch + time + text + image


def test_without_settings_it_has_the_published_size():
    with torch.device("meta"):
        network = WAN_KIND.new_without_weights(PUBLISHED_NETWORK)
    assert sum(value.numel() for value in network.parameters()) == parameters_of(PUBLISHED_NETWORK)
    assert parameters_of(PUBLISHED_NETWORK) == 16_394_878_784
    assert {value.device.type for value in network.parameters()} == {"meta"}
    config = WanConfig()
    assert config.latents_shape == (21, 16, 60, 104)
    assert config.schedule.shift == 3.0


def test_without_weights_it_is_on_the_meta_device(toy_wan, tmp_path):
    copy = changed(toy_wan, tmp_path)
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    model = cil.models.load("wan", copy, weights=False, **SIZE)
    assert {parameter.device.type for parameter in model.network.parameters()} == {"meta"}


def test_weights_that_the_published_files_hold_beside_are_left_out(toy_wan, tmp_path, model):
    """Published files hold a norm of the image's queries, which no layer has."""
    copy = changed(toy_wan, tmp_path)
    path = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    state = {**load_file(path), "blocks.0.attn2.norm_added_q.weight": torch.ones(24)}
    save_file(state, path, metadata={"format": "pt"})
    again = cil.models.load("wan", copy, **SIZE)
    for name, value in again.network.state_dict().items():
        assert torch.equal(value, model.network.state_dict()[name])
    save_file({**state, "blocks.9.attn2.to_q.weight": torch.ones(24)}, path)
    with pytest.raises(DataError, match=r"1 unexpected \(blocks.9"):
        cil.models.load("wan", copy, **SIZE)


def changed(folder, tmp_path, *, part="transformer/config.json", **changes):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / part
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": None}, "must give num_attention_heads, which cannot be seen"),
        ({"attention_head_dim": 8}, "of another shape"),
        ({"in_channels": 4}, "has in_channels 4 .* has 12: noisy latents, mask"),
        ({"image_dim": None}, "attends to no image, as the two networks of Wan 2.2"),
        ({"pos_embed_seq_len": 257}, "a first and a last frame"),
        ({"_class_name": "LTXVideoTransformer3DModel"}, "wan family has a WanTransformer3DModel"),
        ({"num_layers": 3}, r"those of: Wan transformer of diffusers.*missing \(blocks.2"),
    ],
)
def test_a_network_that_is_something_else_is_refused(toy_wan, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        cil.models.load("wan", changed(toy_wan, tmp_path, **changes), **SIZE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flow_shift": None}, "must give flow_shift"),
        ({"prediction_type": "epsilon"}, "must describe flow matching"),
        ({"_class_name": "DDIMScheduler"}, "must describe flow matching .* got 'DDIMScheduler'"),
    ],
)
def test_a_schedule_that_is_something_else_is_refused(toy_wan, tmp_path, changes, message):
    copy = changed(toy_wan, tmp_path, part="scheduler/scheduler_config.json", **changes)
    with pytest.raises(DataError, match=message):
        cil.models.load("wan", copy, weights=False, **SIZE)


def test_the_shift_is_that_of_the_folder_or_that_which_is_asked_for(toy_wan, tmp_path):
    part = "scheduler/scheduler_config.json"
    copy = changed(toy_wan, tmp_path, part=part, flow_shift=5.0)
    model = cil.models.load("wan", copy, weights=False, **SIZE)
    assert model.schedule.shift == 5.0
    asked = cil.models.load("wan", copy, weights=False, flow_shift=8.0, **SIZE)
    assert asked.schedule.shift == 8.0
    (copy / part).write_text(
        json.dumps(
            {
                "_class_name": "FlowMatchEulerDiscreteScheduler",
                "shift": 4.0,
                "num_train_timesteps": 1000,
            }
        )
    )
    assert cil.models.load("wan", copy, weights=False, **SIZE).schedule.shift == 4.0


def test_settings_of_a_folder_that_mean_nothing_are_refused(toy_wan, tmp_path):
    copy = changed(toy_wan, tmp_path, part="scheduler/scheduler_config.json", flow_shift=-1.0)
    with pytest.raises(DataError, match=r"does not describe a wan model: shift must be > 0"):
        cil.models.load("wan", copy, weights=False, **SIZE)


def test_the_two_networks_of_wan_2_2_are_refused(toy_wan, tmp_path):
    copy = changed(toy_wan, tmp_path)
    (copy / "transformer_2").mkdir()
    with pytest.raises(DataError, match="two networks"):
        cil.models.load("wan", copy, **SIZE)


def test_another_family_or_first_stage_is_refused(toy_wan, toy_i2vgenxl, tmp_path):
    copy = changed(toy_wan, tmp_path)
    (copy / "model.json").write_text(json.dumps({"format_version": 1, "family": "svd"}))
    with pytest.raises(DataError, match="got 'svd'"):
        cil.models.load("wan", copy)
    codec = cil.models.load_first_stage(toy_i2vgenxl)
    with pytest.raises(ConfigError, match=r"compresses time .* got AutoencoderKLFirstStage"):
        cil.models.load("wan", toy_wan, first_stage=codec, **{**SIZE, "downsampling": 2})


def test_what_is_missing_is_named(toy_wan, model, image, tmp_path):
    copy = changed(toy_wan, tmp_path)
    shutil.rmtree(copy / "text_encoder")
    without = cil.models.load("wan", copy, **SIZE)
    with pytest.raises(ConfigError, match="has no text encoder"):
        without.clean_condition(image)
    empty = model.clean_condition(image).text_embeds[0]
    null = NullCondition(text_embeds=empty, image_embeds=torch.zeros(1, 16))
    without = cil.models.load("wan", copy, null_condition=null, **SIZE)
    without.save(tmp_path / "saved")
    again = cil.models.load("wan", tmp_path / "saved")
    assert torch.equal(again.clean_condition(image).text_embeds[0], empty)
    shutil.rmtree(copy / "image_encoder")
    with pytest.raises(ConfigError, match="has no image encoder"):
        cil.models.load("wan", copy, **SIZE).clean_condition(image)
    with pytest.raises(ConfigError, match="unknown setting of wan models: p_mean"):
        cil.models.load("wan", toy_wan, p_mean=1.0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"height": 488}, "height must be a multiple of 16"),
        ({"width": 836}, "width must be a multiple of"),
        ({"num_frames": 80}, r"num_frames: a clip must have 4 k \+ 1 frames.*use 77 or 81"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"fps": 0.0}, "fps"),
        ({"flow_shift": 0.0}, "shift must be > 0"),
    ],
)
def test_a_value_out_of_range_is_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        WanConfig(**setting)
