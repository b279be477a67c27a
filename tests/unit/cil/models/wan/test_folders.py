"""Folders of the wan family: saved, loaded, published sizes, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import cil.models
from cil.errors import ConfigError, DataError
from cil.generate import generate
from cil.models.null_condition import NullCondition
from cil.models.wan_config import PUBLISHED_NETWORK, WanConfig
from cil.models.wan_layers import WAN_KIND
from tests.unit.cil.models.wan.toy import (
    SIZE,
    changed,
    parameters_of,
)


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
