"""The svd family against diffusers' own pipeline; what it tells the network, saves and refuses."""

import json
import shutil

import numpy as np
import pytest
import torch

import cil.models
from cil.errors import ConfigError, DataError
from cil.generate import generate
from cil.models import ClipConditions, Condition, Guidance, ImageToVideoModel
from cil.models.svd_config import SVDConfig
from cil.rng import Stream, normal

SIZE = {"num_frames": 4, "height": 32, "width": 48}


@pytest.fixture(scope="module")
def model(toy_svd):
    return cil.models.load("svd", toy_svd, downsampling=2, **SIZE)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(3).integers(0, 255, (32, 48, 3), dtype=np.uint8)


def pipeline_frames(folder, model, image, *, seed, num_steps, guidance, output_type="np"):
    """Sample by diffusers' own pipeline from the same start noise."""
    from diffusers import StableVideoDiffusionPipeline
    from PIL import Image

    pipeline = StableVideoDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = normal(model.latents_shape, seed=seed, sample_ids=[0], stream=Stream.INIT_NOISE, step=0)
    pipeline.scheduler.set_timesteps(num_steps)
    scale = model.config.sigma_max / float(pipeline.scheduler.init_noise_sigma)
    return pipeline(
        Image.fromarray(image),
        height=model.config.height,
        width=model.config.width,
        num_frames=model.config.num_frames,
        num_inference_steps=num_steps,
        min_guidance_scale=guidance.first,
        max_guidance_scale=guidance.last,
        fps=int(model.config.fps),
        motion_bucket_id=int(model.config.motion_bucket_id),
        noise_aug_strength=0.0,
        latents=noise * scale,
        output_type=output_type,
    ).frames


def test_it_is_an_image_to_video_model(model):
    assert isinstance(model, ImageToVideoModel)
    assert model.latents_shape == (4, 4, 16, 24)
    assert model.conditioning_scale == 1.0


@pytest.mark.parametrize("guidance", [Guidance(first=1.0, last=3.0), Guidance()])
def test_diffusers_samples_the_same_frames_from_what_was_saved(model, image, tmp_path, guidance):
    model.save(tmp_path / "saved")
    steps = []
    ours = generate(model, image, seed=7, num_steps=4, guidance=guidance, progress=steps.append)
    theirs = pipeline_frames(
        tmp_path / "saved", model, image, seed=7, num_steps=4, guidance=guidance
    )
    assert steps == [1, 2, 3, 4]
    difference = np.abs(np.asarray(ours[0]) / 255.0 - theirs[0]).max()
    # ours is rounded to bytes
    assert difference <= 0.5 / 255 + 1e-4
    assert float(ours.float().std()) > 5, "a picture, not one colour"


def test_the_latents_agree_before_they_are_decoded(model, image, monkeypatch):
    found = []
    monkeypatch.setattr(
        model.first_stage, "decode", lambda latents: found.append(latents) or torch.zeros(1)
    )
    generate(model, image, seed=7, num_steps=4)
    theirs = pipeline_frames(
        model._encoders, model, image, seed=7, num_steps=4, guidance=model.guidance,
        output_type="latent",
    )  # fmt: skip
    ours = found[0] * model.first_stage.scaling_factor
    torch.testing.assert_close(ours, theirs[0], rtol=1e-4, atol=1e-4)


def test_the_network_is_told_what_svd_expects(model):
    seen = {}

    class Recorder(torch.nn.Module):
        def forward(self, sample, timestep, tokens, ids, *, return_dict):
            seen.update(sample=sample, timestep=timestep, tokens=tokens, ids=ids)
            return (torch.zeros_like(sample[:, :, :4]),)

    noisy = torch.randn(2, *model.latents_shape, generator=torch.Generator().manual_seed(0))
    condition = Condition(
        conditioning_latents=noisy + 1,
        image_embeds=torch.ones(2, 1, 32),
        fps=torch.tensor([7.0, 0.5]),
        motion_bucket_id=torch.tensor([127.0, 9.0]),
        frame_stride=torch.ones(2),
        sigma_cond=torch.tensor([0.0, 1.5]),
    )
    model.denoise(noisy, torch.tensor([0.5, 3.0]), condition, network=Recorder())
    assert seen["ids"].tolist() == [[6, 127, 0], [0, 9, 1.5]]
    torch.testing.assert_close(seen["sample"][:, :, 4:], noisy + 1)


def test_guidance_leaves_what_is_told_and_takes_the_image_away(model, image):
    condition = model.clean_condition(image)
    without = model.unconditional(condition)
    assert not without.conditioning_latents.any()
    assert not without.image_embeds.any()
    assert torch.equal(without.motion_bucket_id, condition.motion_bucket_id)


def test_conditioning_latents_are_not_scaled(model, image):
    condition = model.clean_condition(image)
    latents = model.first_stage.encode(image[None]).mean
    torch.testing.assert_close(condition.conditioning_latents[0, 2], latents[0])


def test_saved_and_loaded_again_it_is_the_same(model, image, tmp_path):
    model.save(tmp_path / "one")
    again = cil.models.load("svd", tmp_path / "one")
    assert again.config == model.config
    assert torch.equal(generate(again, image, seed=1, num_steps=2),
                       generate(model, image, seed=1, num_steps=2))  # fmt: skip
    assert not [p for p in (tmp_path / "one").rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]


def test_a_state_dict_replaces_the_weights(model, tmp_path):
    state = {name: value * 0.5 for name, value in model.network.state_dict().items()}
    model.save(tmp_path / "half", state_dict=state)
    again = cil.models.load("svd", tmp_path / "half")
    for name, value in again.network.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_fresh_weights_depend_on_the_seed_alone(toy_svd):
    config = json.loads((toy_svd / "unet" / "config.json").read_text())
    before = torch.random.get_rng_state()
    one, two = (cil.models.build("svd", seed=4, **config) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.config.num_frames == 4
    for left, right in zip(one.network.parameters(), two.network.parameters(), strict=True):
        assert torch.equal(left, right)
    assert all(parameter.requires_grad for parameter in one.network.parameters())


def test_without_weights_it_is_on_the_meta_device(toy_svd):
    model = cil.models.load("svd", toy_svd, weights=False, downsampling=2, **SIZE)
    assert {parameter.device.type for parameter in model.network.parameters()} == {"meta"}


def test_loaded_parameters_can_be_trained(model):
    assert all(parameter.requires_grad for parameter in model.network.parameters())
    assert 0 < len(model.temporal_parameters()) < len(list(model.network.parameters()))
    call = model.network_call(
        ClipConditions(fps=torch.ones(1), motion_bucket_id=torch.ones(1),
                       frame_stride=torch.ones(1))
    )  # fmt: skip
    assert callable(call)


def changed(folder, tmp_path, **changes):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / "unet" / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": None}, "cannot be seen in the weights"),
        ({"num_attention_heads": [3, 4]}, "must divide block_out_channels"),
        ({"num_attention_heads": [2, 4, 4]}, "must divide block_out_channels"),
        ({"num_attention_heads": [2, "a"]}, "must divide block_out_channels"),
        ({"block_out_channels": [32, "a"]}, "must divide block_out_channels"),
        ({"_class_name": "I2VGenXLUNet"}, "describes a 'I2VGenXLUNet'"),
        ({"block_out_channels": [32, 96]}, "does not fit UNetSpatioTemporalConditionModel"),
    ],
)
def test_a_folder_that_is_something_else_is_refused(toy_svd, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        cil.models.load("svd", changed(toy_svd, tmp_path, **changes), downsampling=2, **SIZE)


def test_another_family_is_refused(toy_svd, tmp_path):
    copy = changed(toy_svd, tmp_path)
    (copy / "model.json").write_text(json.dumps({"format_version": 1, "family": "tiny"}))
    with pytest.raises(DataError, match="got 'tiny'"):
        cil.models.load("svd", copy)


@pytest.mark.parametrize("setting", [{"beta": 1}, {"network": {}}, {"block_out_channels": (1,)}])
def test_an_unknown_change_is_refused(toy_svd, setting):
    name = next(iter(setting))
    with pytest.raises(ConfigError, match=f"unknown setting of svd models: {name}"):
        cil.models.load("svd", toy_svd, **setting)


@pytest.mark.parametrize("setting", [{"height": 33}, {"num_frames": 0}, {"p_std": -1.0}])
def test_a_value_out_of_range_is_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        SVDConfig(**setting)
