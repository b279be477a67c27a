"""The first stage of Wan: clips to fewer frames of latents, as diffusers encodes them."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from transformers import CLIPImageProcessor

from cil.errors import ConfigError, DataError
from cil.models import ClipFirstStage, FirstStage, FirstStageOptions, load_first_stage
from cil.models.autoencoder_kl import AutoencoderKLFirstStage
from cil.models.centre_square import clip_square
from cil.models.first_stage import latent_frames, latent_layout
from cil.models.wan_vae import WanFirstStage

MEAN = torch.tensor([0.2, -0.3, 0.1, 0.0])[:, None, None]
STD = torch.tensor([0.5, 1.5, 0.8, 1.2])[:, None, None]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def codec(toy_wan):
    return load_first_stage(toy_wan)


@pytest.fixture(scope="module")
def vae(toy_wan):
    return AutoencoderKLWan.from_pretrained(toy_wan / "vae").eval()


def clip(frames=9, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 255, (frames, 16, 24, 3), dtype=np.uint8)


def pixels(frames):
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0


@torch.no_grad()
def test_latents_are_those_of_diffusers_standardised(codec, vae):
    frames = clip()
    posterior = codec.encode(frames)
    theirs = vae.encode(pixels(frames)).latent_dist
    assert posterior.mean.shape == (3, 4, 4, 6)
    torch.testing.assert_close(posterior.mean, (theirs.mean[0].transpose(0, 1) - MEAN) / STD)
    torch.testing.assert_close(posterior.std, theirs.std[0].transpose(0, 1) / STD)
    assert float(posterior.std.min()) > 0
    assert codec.scaling_factor == 1.0


@torch.no_grad()
def test_decoding_gives_the_frames_of_diffusers(codec, vae):
    latents = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    ours = codec.decode(latents)
    theirs = vae.decode((latents * STD + MEAN).transpose(0, 1)[None]).sample[0]
    assert ours.shape == (9, 16, 24, 3)
    wanted = theirs.permute(1, 2, 3, 0) * 127.5 + 127.5
    assert float((ours.float() - wanted).abs().max()) <= 0.5 + 1e-3
    assert codec.decode(latents[:1]).shape == (1, 16, 24, 3)
    with pytest.raises(DataError, match="must be finite"):
        codec.decode(latents * float("nan"))
    with pytest.raises(DataError, match="latents"):
        codec.decode(latents[:, :3])


@torch.no_grad()
def test_the_condition_is_the_image_and_grey_frames(codec, vae):
    frames = clip()
    shown = codec.encode_conditioning(frames[0], 9)
    whole = pixels(frames)
    whole[:, :, 1:] = 0.0
    theirs = vae.encode(whole).latent_dist.mode()[0].transpose(0, 1)
    torch.testing.assert_close(shown, (theirs - MEAN) / STD)
    torch.testing.assert_close(shown[0], codec.encode(frames).mean[0])
    torch.testing.assert_close(shown[:1], codec.encode(frames[:1]).mean)


def test_the_image_shows_in_the_latents_of_the_grey_frames(codec):
    """Why noise on the first frame alone would hide nothing: the encoder looks back."""
    one, two = (codec.encode_conditioning(clip(seed=seed)[0], 9) for seed in (0, 1))
    for frame in range(2):
        assert float((one[frame] - two[frame]).abs().max()) > 1e-3, frame


def test_it_is_a_first_stage_of_clips(codec, toy_i2vgenxl):
    assert isinstance(codec, FirstStage)
    assert isinstance(codec, ClipFirstStage)
    assert (codec.latent_channels, codec.downsampling) == (4, 4)
    assert [latent_frames(codec, frames) for frames in (1, 5, 81)] == [1, 2, 21]
    other = load_first_stage(toy_i2vgenxl)
    assert not isinstance(other, ClipFirstStage)
    assert latent_frames(other, 8) == 8


@pytest.mark.parametrize("frames", [0, 2, 4, 8])
def test_clips_of_other_lengths_are_refused(codec, frames):
    with pytest.raises(DataError, match=r"4 k \+ 1 frames.*got " + str(frames)):
        codec.latent_frames(frames)
    if frames:
        with pytest.raises(DataError, match=r"4 k \+ 1 frames"):
            codec.encode(clip(frames))
    with pytest.raises(DataError, match=r"4 k \+ 1 frames"):
        codec.encode_conditioning(clip(1)[0], frames)


def test_sizes_that_do_not_divide_are_refused(codec):
    with pytest.raises(DataError, match="multiples of 4"):
        codec.encode(clip(1)[:, :15])


def test_saved_and_loaded_again_it_is_the_same(codec, tmp_path):
    codec.save(tmp_path / "one")
    again = load_first_stage(tmp_path / "one")
    assert type(again) is WanFirstStage
    assert again.fingerprint() == codec.fingerprint()
    assert torch.equal(again.encode(clip(5)).mean, codec.encode(clip(5)).mean)
    assert latent_layout(tmp_path / "one") == (4, 4)
    with pytest.raises(DataError, match="reads AutoencoderKL and"):
        AutoencoderKLFirstStage.from_diffusers(tmp_path / "one" / "vae")


def test_other_arithmetic_is_near(codec, toy_wan):
    half = load_first_stage(toy_wan, options=FirstStageOptions(dtype="bfloat16"))
    assert half.fingerprint() == codec.fingerprint()
    difference = (half.encode(clip(5)).mean - codec.encode(clip(5)).mean).abs().max()
    assert 0 < float(difference) < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents_mean": [0.0] * 3}, "latents_mean and latents_std of its 4 channels"),
        ({"latents_std": [1.0, 1.0, 0.0, 1.0]}, "must be > 0"),
    ],
)
def test_settings_that_mean_something_else_are_refused(toy_wan, tmp_path, changes, message):
    shutil.copytree(toy_wan / "vae", tmp_path / "vae")
    path = tmp_path / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(DataError, match=message):
        load_first_stage(tmp_path)


def test_another_compression_of_time_is_refused():
    with torch.random.fork_rng(devices=[]):
        vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )
    with pytest.raises(DataError, match="compresses time by 2"):
        WanFirstStage(vae)


def test_tiles_are_refused(toy_wan):
    with pytest.raises(ConfigError, match="tile_size 64"):
        load_first_stage(toy_wan, options=FirstStageOptions(tile_size=64))


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (32, 32), (33, 47), (20, 28)])
def test_clip_sees_what_its_own_processor_shows(shape):
    image = np.random.default_rng(2).integers(0, 255, (*shape, 3), dtype=np.uint8)
    processor = CLIPImageProcessor(
        crop_size=32, size={"shortest_edge": 32}, do_rescale=False, do_normalize=False
    )
    theirs = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    ours = clip_square(torch.from_numpy(image), 32)
    assert np.array_equal(ours.permute(2, 0, 1).numpy(), theirs)
