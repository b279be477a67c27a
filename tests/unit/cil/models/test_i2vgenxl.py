"""The i2vgenxl family against diffusers' own pipeline; what it tells the network and refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLTransformerTemporalEncoder

import cil.models
from cil.errors import ConfigError, DataError
from cil.generate import generate
from cil.losses import Counter, NetworkInputs
from cil.models import ClipConditions, Guidance, ImageToVideoModel
from cil.models.i2vgenxl_config import I2VGenXLConfig
from cil.models.i2vgenxl_layers import image_latents
from cil.models.null_condition import NullCondition
from cil.rng import Stream, normal

SIZE = {"num_frames": 3, "height": 16, "width": 24, "downsampling": 2}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Convolutions this small wait for each other on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(toy_i2vgenxl):
    return cil.models.load("i2vgenxl", toy_i2vgenxl, **SIZE)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(3).integers(0, 255, (16, 24, 3), dtype=np.uint8)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pipeline_frames(folder, model, image, *, scale, output_type):
    """Sample by diffusers' own pipeline, with its own prompts, from the same start noise."""
    from diffusers import I2VGenXLPipeline
    from PIL import Image

    pipeline = I2VGenXLPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    # the pipeline asks for a name that transformers 5 has no more
    pipeline.text_encoder.__dict__["text_model"] = pipeline.text_encoder
    noise = normal(model.latents_shape, seed=7, sample_ids=[0], stream=Stream.INIT_NOISE, step=0)
    return pipeline(
        prompt="",
        image=Image.fromarray(image),
        height=model.config.height,
        width=model.config.width,
        num_frames=model.config.num_frames,
        target_fps=int(model.config.fps),
        num_inference_steps=4,
        guidance_scale=scale,
        latents=noise.transpose(1, 2),
        output_type=output_type,
    ).frames


@pytest.mark.parametrize("scale", [9.0, 1.0])
def test_diffusers_samples_the_same_from_what_was_saved(model, image, tmp_path, monkeypatch, scale):
    model.save(tmp_path / "saved")
    guidance = Guidance(first=scale, last=scale)
    assert scale == 1.0 or model.guidance == guidance
    ours = generate(model, image, seed=7, num_steps=4, guidance=guidance)[0]
    found = []
    monkeypatch.setattr(
        model.first_stage, "decode", lambda latents: found.append(latents) or torch.zeros(1)
    )
    generate(model, image, seed=7, num_steps=4, guidance=guidance)
    theirs = pipeline_frames(tmp_path / "saved", model, image, scale=scale, output_type="latent")[
        0
    ].transpose(0, 1)
    latents = found[0] * model.first_stage.scaling_factor
    torch.testing.assert_close(latents, theirs, rtol=1e-4, atol=1e-4)
    frames = pipeline_frames(tmp_path / "saved", model, image, scale=scale, output_type="np")[0]
    # ours is rounded to bytes
    assert np.abs(ours.numpy() / 255.0 - frames).max() <= 0.5 / 255 + 1e-4
    assert float(ours.float().std()) > 5, "a picture, not one colour"


def test_it_is_an_image_to_video_model(model):
    assert isinstance(model, ImageToVideoModel)
    assert model.latents_shape == (3, 4, 8, 12)
    assert model.conditioning_scale == model.first_stage.scaling_factor
    assert model.parameterization == "v_prediction"
    assert model.token_shape == (1, 16)


def test_the_other_frames_tell_their_place():
    latents = random(2, 5, 3, 2, 2)
    shown = image_latents(latents)
    assert torch.equal(shown[:, 0], latents[:, 0])
    for frame in range(1, 5):
        assert torch.equal(shown[:, frame], torch.full((2, 3, 2, 2), frame / 4))
    assert torch.equal(image_latents(latents[:, :1]), latents[:, :1])


class Recorder(torch.nn.Module):
    """Stands in for the network: keeps what it was given and answers with a constant."""

    def forward(self, sample, timestep, **told):
        self.seen = {"sample": sample, "timestep": timestep, **told}
        return (torch.full_like(sample, 0.5),)


def test_the_network_is_told_what_the_pipeline_tells_it(model, image):
    recorder, noisy = Recorder(), random(1, *model.latents_shape)
    condition = model.clean_condition(image, prompt="a red kite")
    level = torch.tensor([300])
    denoised = model.denoise(noisy, level, condition, network=recorder)
    seen = recorder.seen
    assert torch.equal(seen["sample"], noisy.transpose(1, 2))
    assert seen["timestep"].tolist() == [300]
    assert seen["fps"].tolist() == [16.0]
    assert seen["return_dict"] is False
    first = model.first_stage.encode(image[None]).mean * model.first_stage.scaling_factor
    torch.testing.assert_close(seen["image_latents"][:, :, 0], first)
    assert torch.equal(seen["image_latents"][0, :, 2], torch.ones(4, 8, 12))
    assert seen["image_embeddings"].shape == (1, 1, 16)
    assert seen["encoder_hidden_states"].shape == (1, 12, 16)
    alpha, sigma = model.schedule.scales(level)
    torch.testing.assert_close(denoised, alpha * noisy - sigma * 0.5)


def test_the_caption_is_heard(model, image):
    noisy, level = random(1, *model.latents_shape), torch.tensor([500])
    with torch.no_grad():
        one, two = (
            model.denoise(noisy, level, model.clean_condition(image, prompt=prompt))
            for prompt in ("a red kite", None)
        )
    assert float((one - two).norm() / one.norm()) > 1e-4


def test_guidance_keeps_the_latents_and_takes_token_and_caption_away(model, image):
    condition = model.clean_condition(image, num_clips=2, prompt="a red kite")
    without = model.unconditional(condition)
    assert torch.equal(without.conditioning_latents, condition.conditioning_latents)
    assert not without.image_embeds.any()
    assert condition.image_embeds.any()
    empty = model.clean_condition(image, num_clips=2)
    assert torch.equal(without.text_embeds, empty.text_embeds)
    assert not torch.equal(without.text_embeds, condition.text_embeds)


def test_training_drops_to_what_guidance_leads_away_from(model, image):
    """The pipeline's null condition, which `unconditional` is; the latents stay."""
    told = model.clean_condition(image, num_clips=4, prompt="a red kite")
    without = model.unconditional(told)
    uniform = torch.tensor([0.05, 0.1, 0.0999, 0.9])
    made = model.training_conditions(
        told,
        told.image_embeds,
        uniform=uniform,
        dropout=0.1,
        counter=Counter(seed=0, sample_ids=torch.arange(4), step=0),
    )
    for row, dropped in enumerate((True, False, True, False)):
        source = without if dropped else told
        assert torch.equal(made.clips.text_embeds[row], source.text_embeds[row])
        assert torch.equal(made.tokens[row], source.image_embeds[row])
    assert made.dropout == 0, "the loss drops nothing more, so latents stay"


def test_the_token_is_that_of_the_centre_square(model, image):
    wide = image.copy()
    wide[:, :4] = wide[:, -4:] = 0  # 16 of 24 columns are the centre
    assert torch.equal(model.encode_condition(wide), model.encode_condition(image))
    wide[:, 8:12] = 0
    assert not torch.equal(model.encode_condition(wide), model.encode_condition(image))


def conditions(**changes):
    return ClipConditions(
        **{
            "fps": torch.tensor([8.0]),
            "motion_bucket_id": torch.ones(1),
            "frame_stride": torch.ones(1),
            "text_embeds": random(1, 5, 16, seed=1),
            **changes,
        }
    )


def inputs(model, *, conditioning_latents=None):
    noisy = random(1, *model.latents_shape, seed=2)
    latents = random(1, *model.latents_shape, seed=3)
    return NetworkInputs(
        noisy=noisy,
        time=torch.tensor([400]),
        conditioning_latents=latents if conditioning_latents is None else conditioning_latents,
        tokens=random(1, 1, 16, seed=4),
        sigma_cond=torch.ones(1),
        keep=torch.ones(1),
    )


def test_noise_on_the_condition_reaches_the_network_in_the_first_frame_alone(model):
    latents = inputs(model).conditioning_latents
    call = model.network_call(conditions())

    def output(noise):
        with torch.no_grad():
            return call(inputs(model, conditioning_latents=latents + noise))

    first, others = torch.zeros_like(latents), torch.zeros_like(latents)
    first[:, 0], others[:, 1:] = 1.0, 1.0
    assert torch.equal(output(others), output(0.0 * others))
    assert float((output(first) - output(others)).abs().max()) > 1e-3


def test_clips_without_captions_are_refused(model):
    with pytest.raises(DataError, match=r"encode the data set with condition\.text_encoder"):
        model.network_call(conditions(text_embeds=None))


def gradients(model, *, checkpointing):
    network = model.network.train()
    if checkpointing:
        network.enable_gradient_checkpointing()
    network.zero_grad()
    torch.default_generator.manual_seed(1)  # of the dropout
    model.network_call(conditions())(inputs(model)).square().mean().backward()
    return {name: value.grad.clone() for name, value in network.named_parameters()}


def test_checkpointing_computes_again_and_changes_nothing(toy_i2vgenxl):
    model = cil.models.load("i2vgenxl", toy_i2vgenxl, **SIZE)
    with torch.random.fork_rng(devices=[]):
        check_checkpointing(model)


def check_checkpointing(model):
    plain = gradients(model, checkpointing=False)
    calls = []
    layer = model.network.down_blocks[0].temp_convs[0].conv1[0]
    layer.register_forward_hook(lambda *_: calls.append(1))
    less_memory = gradients(model, checkpointing=True)
    assert len(calls) == 2, "once forward, and again in the backward pass"
    for name, value in plain.items():
        torch.testing.assert_close(less_memory[name], value, rtol=1e-5, atol=1e-7)
    assert all(value.any() for name, value in plain.items() if name.endswith("weight"))


def inside(network, kinds):
    return {
        f"{path}.{name}"
        for path, module in network.named_modules()
        if isinstance(module, kinds)
        for name, _ in module.named_parameters()
    }


def test_exactly_the_layers_that_mix_frames_are_temporal(model):
    kinds = (TemporalConvLayer, TransformerTemporalModel, I2VGenXLTransformerTemporalEncoder)
    assert model.temporal_parameters() == inside(model.network, kinds)
    assert not inside(model.network, Transformer2DModel) & model.temporal_parameters()


def test_lora_adapts_every_attention(model):
    linear = [
        name
        for name, layer in model.network.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.endswith(model.lora_targets())
    ]
    attention = {name.rpartition(".to_")[0] for name in linear}
    assert len(linear) == 4 * len(attention)
    assert "image_latents_temporal_encoder.attn1" in attention
    assert any(".temp_attentions." in name for name in attention)
    assert any(".attentions." in name and name.endswith("attn2") for name in attention)


def test_saved_and_loaded_again_it_is_the_same(model, image, tmp_path, toy_i2vgenxl):
    model.save(tmp_path / "one")
    again = cil.models.load("i2vgenxl", tmp_path / "one")
    assert again.config == model.config
    one, two = (generate(m, image, seed=1, num_steps=2, start_time=0.9) for m in (model, again))
    assert torch.equal(one, two)
    again.save(tmp_path / "two")
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        names = sorted(path.name for path in (tmp_path / "one" / part).iterdir())
        assert names == sorted(path.name for path in (tmp_path / "two" / part).iterdir())
        for name in names:
            one, two = (tmp_path / run / part / name for run in ("one", "two"))
            assert one.read_bytes() == two.read_bytes(), name
            assert str(toy_i2vgenxl).encode() not in one.read_bytes(), name


def test_a_state_dict_replaces_the_weights(model, tmp_path):
    state = {name: value * 0.5 for name, value in model.network.state_dict().items()}
    model.save(tmp_path / "half", state_dict=state)
    again = cil.models.load("i2vgenxl", tmp_path / "half")
    for name, value in again.network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not torch.equal(next(iter(state.values())), next(model.network.parameters()))


def test_fresh_weights_depend_on_the_seed_alone(toy_i2vgenxl):
    config = json.loads((toy_i2vgenxl / "unet" / "config.json").read_text())
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    before = torch.random.get_rng_state()
    states = [
        cil.models.build("i2vgenxl", seed=s, **config).network.state_dict() for s in (4, 4, 5)
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_without_weights_it_is_on_the_meta_device(toy_i2vgenxl, tmp_path):
    copy = changed(toy_i2vgenxl, tmp_path)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    model = cil.models.load("i2vgenxl", copy, weights=False, **SIZE)
    assert {parameter.device.type for parameter in model.network.parameters()} == {"meta"}


def changed(folder, tmp_path, *, part="unet/config.json", **changes):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / part
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_head_dim": None}, "must give attention_head_dim .* cannot be seen"),
        ({"attention_head_dim": 5}, "attention_head_dim 5 must divide block_out_channels"),
        ({"attention_head_dim": 8}, r"23 of another shape \(transformer_in.proj_in"),
        ({"norm_num_groups": None}, "must give norm_num_groups"),
        ({"_class_name": "UNet3DConditionModel"}, "i2vgenxl family has a I2VGenXLUNet"),
        ({"cross_attention_dim": 32}, r"13 of another shape \(image_l"),
    ],
)
def test_a_network_that_is_something_else_is_refused(toy_i2vgenxl, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        cil.models.load("i2vgenxl", changed(toy_i2vgenxl, tmp_path, **changes), **SIZE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_schedule": None}, "must give beta_schedule"),
        ({"beta_schedule": "linear"}, "beta_schedule must be one of"),
        ({"prediction_type": "sample"}, "prediction_type must be one of"),
        ({"prediction_type": "epsilon"}, "use v_prediction"),
        ({"clip_sample": True}, "sets clip_sample, which no sampler here does"),
    ],
)
def test_a_schedule_that_is_something_else_is_refused(toy_i2vgenxl, tmp_path, changes, message):
    copy = changed(toy_i2vgenxl, tmp_path, part="scheduler/scheduler_config.json", **changes)
    with pytest.raises(DataError, match=message):
        cil.models.load("i2vgenxl", copy, weights=False, **SIZE)


def test_the_schedule_is_that_of_the_folder(toy_i2vgenxl, tmp_path):
    changes = {
        "beta_schedule": "scaled_linear",
        "rescale_betas_zero_snr": False,
        "prediction_type": "epsilon",
        "beta_end": 0.02,
    }
    copy = changed(toy_i2vgenxl, tmp_path, part="scheduler/scheduler_config.json", **changes)
    model = cil.models.load("i2vgenxl", copy, weights=False, **SIZE)
    assert model.schedule.beta_schedule == "scaled_linear"
    assert model.schedule.beta_end == 0.02
    assert not model.schedule.zero_terminal_snr
    assert model.parameterization == "epsilon"


def test_another_family_is_refused(toy_i2vgenxl, tmp_path):
    copy = changed(toy_i2vgenxl, tmp_path)
    (copy / "model.json").write_text(json.dumps({"format_version": 1, "family": "svd"}))
    with pytest.raises(DataError, match="got 'svd'"):
        cil.models.load("i2vgenxl", copy)
    with pytest.raises(DataError, match="describes a 'I2VGenXLUNet'"):
        cil.models.load("svd", toy_i2vgenxl)


def test_what_is_missing_is_named(toy_i2vgenxl, model, image, tmp_path):
    copy = changed(toy_i2vgenxl, tmp_path)
    shutil.rmtree(copy / "text_encoder")
    without = cil.models.load("i2vgenxl", copy, **SIZE)
    with pytest.raises(ConfigError, match="has no text encoder"):
        without.clean_condition(image)
    empty = model.clean_condition(image).text_embeds[0]
    null = NullCondition(text_embeds=empty, image_embeds=torch.zeros(1, 16))
    without = cil.models.load("i2vgenxl", copy, null_condition=null, **SIZE)
    without.save(tmp_path / "saved")
    again = cil.models.load("i2vgenxl", tmp_path / "saved")
    assert torch.equal(again.clean_condition(image).text_embeds[0], empty)
    with pytest.raises(ConfigError, match="has no text encoder"):
        again.clean_condition(image, prompt="a red kite")
    with pytest.raises(ConfigError, match="unknown setting of i2vgenxl models: p_mean"):
        cil.models.load("i2vgenxl", toy_i2vgenxl, p_mean=1.0)
    with pytest.raises(ConfigError, match="unknown setting of i2vgenxl models: p_mean"):
        cil.models.build("i2vgenxl", p_mean=1.0)


@pytest.mark.parametrize(
    "setting", [{"height": 33}, {"num_frames": 0}, {"guidance_scale": -1.0}, {"fps": 0.0}]
)
def test_a_value_out_of_range_is_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        I2VGenXLConfig(**setting)
