"""The tiny family: what it computes, what it sees, what it saves, what it refuses."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
import torch

import cil.models
from cil.errors import ConfigError, DataError
from cil.models import Condition, ImageToVideoModel
from cil.models.patch_moments import PatchMoments
from cil.models.patch_pca import PatchPCA

SIZES = {"num_frames": 2, "height": 16, "width": 16, "latent_channels": 3, "downsampling": 4}


def picture(seed=0, size=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def codec():
    moments = PatchMoments(patch_size=4)
    moments.update(torch.stack([picture(seed) for seed in range(8)]))
    return PatchPCA.fit(moments, latent_channels=3)


@pytest.fixture(scope="module")
def model(codec):
    return cil.models.build("tiny", seed=1, first_stage=codec, **SIZES)


@pytest.fixture
def noisy():
    return torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(2))


def run(model, noisy, sigma=2.0, **changes):
    condition = dataclasses.replace(model.clean_condition(picture(), num_clips=2), **changes)
    with torch.no_grad():
        return model.denoise(noisy, torch.full((2,), float(sigma)), condition)


class Recorder(torch.nn.Module):
    """Stands in for the network: keeps what it was given and answers with a constant."""

    def forward(self, sample, timestep, encoder_hidden_states, added_time_ids, return_dict):
        self.seen = (sample, timestep, encoder_hidden_states, added_time_ids, return_dict)
        return (torch.full_like(sample[:, :, : sample.shape[2] // 2], 0.5),)


def test_the_network_is_given_what_svd_expects(model, noisy):
    recorder, sigma = Recorder(), torch.tensor([0.5, 3.0])
    condition = Condition(
        conditioning_latents=noisy + 1,
        image_embeds=torch.ones(2, 1, 32),
        fps=torch.tensor([8.0, 7.0]),
        motion_bucket_id=torch.tensor([127.0, 9.0]),
        frame_stride=torch.ones(2),
        sigma_cond=torch.tensor([0.0, 1.5]),
    )
    denoised = model.denoise(noisy, sigma, condition, network=recorder)
    sample, timestep, tokens, ids, return_dict = recorder.seen
    level = sigma[:, None, None, None, None]
    torch.testing.assert_close(sample[:, :, :3], noisy / (level**2 + 1).sqrt())
    torch.testing.assert_close(sample[:, :, 3:], noisy + 1)
    torch.testing.assert_close(timestep, torch.tensor([math.log(0.5), math.log(3.0)]) / 4)
    assert ids.tolist() == [[8, 127, 0], [7, 9, 1.5]]
    assert torch.equal(tokens, condition.image_embeds)
    assert return_dict is False
    want = noisy / (level**2 + 1) - 0.5 * level / (level**2 + 1).sqrt()
    torch.testing.assert_close(denoised, want)


def test_at_low_noise_the_input_comes_back(model, noisy):
    assert float((run(model, noisy, sigma=1e-4) - noisy).abs().max()) < 1e-3


@pytest.mark.parametrize("name", ["fps", "motion_bucket_id", "sigma_cond"])
def test_the_output_moves_with_each_added_id(model, noisy, name):
    changed = run(model, noisy, **{name: torch.tensor([3.0, 3.0])})
    assert float((changed - run(model, noisy)).norm() / changed.norm()) > 1e-4


def test_the_network_sees_sigma(model, noisy):
    with torch.no_grad():
        outputs = [
            model.network(
                torch.cat([noisy, noisy], 2), torch.tensor([c_noise] * 2), torch.zeros(2, 1, 32),
                torch.zeros(2, 3), return_dict=False,
            )[0]
            for c_noise in (-0.5, 0.5)
        ]  # fmt: skip
    assert float((outputs[0] - outputs[1]).norm() / outputs[0].norm()) > 1e-4


def test_32_channels_everywhere_is_refused_because_it_is_blind(model, noisy):
    with pytest.raises(ConfigError, match="one channel erases what the network is told of sigma"):
        cil.models.build("tiny", block_out_channels=(32, 32))
    # The reason is real: such a network, made directly, does not see the added ids.
    blind = model.config.network_config() | {"block_out_channels": (32, 32)}
    network = type(model.network)(**blind)
    with torch.no_grad():
        outputs = [
            network(torch.cat([noisy, noisy], 2), 0.1, torch.zeros(2, 1, 32), ids).sample
            for ids in (torch.zeros(2, 3), torch.full((2, 3), 5.0))
        ]
    assert float((outputs[0] - outputs[1]).norm() / outputs[0].norm()) < 1e-5


def test_build_is_a_function_of_the_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    states = [cil.models.build("tiny", seed=s, **SIZES).network.state_dict() for s in (0, 0, 1)]
    assert torch.equal(torch.rand(3), want)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["conv_in.weight"], states[2]["conv_in.weight"])


def test_save_and_load(model, noisy, tmp_path):
    assert isinstance(model, ImageToVideoModel)
    model.save(tmp_path / "a")
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    again = cil.models.load("tiny", tmp_path / "a")
    assert torch.equal(torch.rand(3), want)
    assert again.config == model.config
    assert again.schedule == model.schedule
    assert again.first_stage.fingerprint() == model.first_stage.fingerprint()
    assert torch.equal(run(again, noisy), run(model, noisy))
    opened = type(model.network).from_pretrained(tmp_path / "a" / "unet", low_cpu_mem_usage=False)
    assert torch.equal(opened.conv_in.weight, model.network.conv_in.weight)
    again.save(tmp_path / "b")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert [str(file) for file in files] == [
        "first_stage/first_stage.json",
        "first_stage/first_stage.safetensors",
        "model.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    described = json.loads((tmp_path / "a" / "model.json").read_text())
    assert described["family"] == "tiny"
    assert described["p_mean"] == model.config.p_mean


def test_other_weights_can_be_saved_in_place_of_the_networks(model, tmp_path):
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    model.save(tmp_path, state_dict={name: value * 0.5 for name, value in before.items()})
    saved = cil.models.load("tiny", tmp_path).network.state_dict()
    assert all(torch.equal(saved[name], before[name] * 0.5) for name in before)
    assert all(torch.equal(model.network.state_dict()[name], before[name]) for name in before)


def test_a_folder_that_does_not_fit_together_is_refused(model, tmp_path):
    with pytest.raises(DataError, match="give a folder that save"):
        cil.models.load("tiny", tmp_path)
    model.save(tmp_path)
    path = tmp_path / "model.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"num_attention_heads": [1, 4]}))
    with pytest.raises(DataError, match=r"num_attention_heads = .*model.json means \[1, 4\]"):
        cil.models.load("tiny", tmp_path)
    path.write_text(json.dumps(values | {"family": "svd"}))
    with pytest.raises(DataError, match="got 'svd' of format 1"):
        cil.models.load("tiny", tmp_path)
    path.write_text(json.dumps(values | {"colour": 3}))
    with pytest.raises(DataError, match="colour"):
        cil.models.load("tiny", tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"colour": 3}, "unknown setting of tiny models: colour"),
        ({"height": 30}, "model.height must be a multiple of downsampling = 4, got 30"),
        ({"num_frames": 0}, "model.num_frames must be > 0, got 0"),
        ({"block_out_channels": (48, 64)}, r"multiples of 32, got \(48, 64\)"),
        ({"num_attention_heads": (1,)}, r"one entry for each .* got \(1,\)"),
        ({"p_std": 0.0}, "p_std must be > 0 and finite, got 0.0"),
        ({"sigma_max": 0.01}, "sigma_max must be > sigma_min = 0.02, got 0.01"),
    ],
)
def test_wrong_settings_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        cil.models.build("tiny", **config)


def test_parts_that_do_not_fit_are_refused(codec, model):
    with pytest.raises(ConfigError, match=r"are \(5, 4\), the first stage has \(3, 4\)"):
        cil.models.build("tiny", first_stage=codec, latent_channels=5)
    with pytest.raises(ConfigError, match="no first stage; pass first_stage="):
        _ = cil.models.build("tiny", **SIZES).first_stage
    with pytest.raises(ConfigError, match=r"unknown model family 'sora'; known: .*tiny"):
        cil.models.build("sora")
    with pytest.raises(DataError, match=r"h = 4 in \(C h w\), got \(3, 8, 8\)"):
        model.clean_condition(picture(size=32))


def test_importing_needs_neither_diffusers_nor_safetensors():
    blocked = ["diffusers", "safetensors", "transformers", "numpy", "av", "cv2", "PIL", "ray"]
    program = (
        "import sys, torch\n"
        f"for name in {blocked!r}:\n"
        "    [sys.modules.pop(m) for m in list(sys.modules) if m.split('.')[0] == name]\n"
        "    sys.modules[name] = None\n"
        "import cil, cil.models, cil.models.patch_pca, cil.models.tiny\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_model_can_be_loaded_for_other_clips_and_levels(model, codec, tmp_path):
    """Training begins with such weights: what does not decide them may change."""
    model.save(tmp_path)
    other = cil.models.load(
        "tiny", tmp_path, first_stage=codec, num_frames=3, height=32, p_mean=0.7, fps=9.0
    )
    assert other.first_stage is codec
    assert other.latents_shape == (3, 3, 8, 4)
    assert (other.config.p_mean, other.config.fps) == (0.7, 9.0)
    weights = model.network.state_dict()
    assert all(
        torch.equal(value, weights[name]) for name, value in other.network.state_dict().items()
    )
    planned = cil.models.load("tiny", tmp_path, weights=False)
    assert {value.device.type for value in planned.network.parameters()} == {"meta"}
    assert {name: value.shape for name, value in planned.network.state_dict().items()} == {
        name: value.shape for name, value in weights.items()
    }


def test_settings_that_mean_another_network_are_refused(model, tmp_path):
    model.save(tmp_path)
    with pytest.raises(ConfigError, match=r"has layers_per_block = 1, the settings ask for 2"):
        cil.models.load("tiny", tmp_path, layers_per_block=2)
    with pytest.raises(ConfigError, match="unknown setting of tiny models: colour"):
        cil.models.load("tiny", tmp_path, colour=3)
    with pytest.raises(ConfigError, match="a tiny model has no encoders"):
        cil.models.load("tiny", tmp_path, encoders=tmp_path)
